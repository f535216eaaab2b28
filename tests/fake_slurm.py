"""A cluster of one machine for tests: sbatch, squeue, scontrol, scancel, sacct and srun, by the name it is called by.

Its state is in the folder $FAKE_SLURM: a file for each job in the queue. An array has a process that runs its jobs one
after the other. What sbatch was given is kept.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

STATE = Path(os.environ["FAKE_SLURM"])


def read_job(name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((STATE / f"{name}.job").read_text())
    return found


def write_job(name: str, **values: object) -> None:
    part = STATE / f"{name}.part"
    part.write_text(json.dumps(values))
    part.replace(STATE / f"{name}.job")


def run_array(array: str, script: Path) -> None:
    """Run the jobs of an array; one that is to be requeued is run again at once."""
    given = script.read_text()
    last = int(re.findall(r"--array=0-(\d+)%", given)[0])
    output = re.findall(r"--output=(\S+)", given)[0]
    for index in range(last + 1):
        name, count = f"{array}_{index}", 0
        while (STATE / f"{name}.job").exists() and read_job(name)["state"] != "CANCELLED":
            own = {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": str(index), "SLURM_RESTART_COUNT": str(count)}
            with Path(output.replace("%A_%a", name)).open("a") as log:
                process = subprocess.Popen(
                    ["bash", str(script)], env={**os.environ, **own}, stdout=log, stderr=log, start_new_session=True
                )
            write_job(name, state="RUNNING", pid=process.pid)
            process.wait()
            count += 1
            if not (STATE / f"{name}.requeue").exists():
                break
            (STATE / f"{name}.requeue").unlink()
        (STATE / f"{name}.job").unlink()


def main(command: str, words: list[str]) -> int:
    """One command."""
    if command == "sbatch":
        script = Path(words[-1])
        if "--refused" in script.read_text():
            print("sbatch: error: invalid partition specified: nowhere", file=sys.stderr)
            return 1
        array = str(1000 + len(list(STATE.glob("*.sh"))))
        (STATE / f"{array}.sh").write_text(script.read_text())
        for index in range(int(re.findall(r"--array=0-(\d+)%", script.read_text())[0]) + 1):
            write_job(f"{array}_{index}", state="PENDING", pid=0)
        subprocess.Popen(
            [sys.executable, __file__, "run", array, str(script)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        print(f"{array};cluster")
    elif command == "run":
        run_array(words[0], Path(words[1]))
    elif command == "squeue" and "-j" in words:
        print(read_job(words[words.index("-j") + 1])["state"])
    elif command == "squeue":
        if (STATE / "down").exists():
            return 1
        print("\n".join(path.stem for path in STATE.glob("*.job")))
    elif command == "scontrol":
        (STATE / f"{words[1]}.requeue").write_text("")
    elif command == "scancel":
        for path in STATE.glob(f"{words[0]}_*.job"):
            job = read_job(path.stem)
            write_job(path.stem, state="CANCELLED", pid=job["pid"])
            if job["pid"]:
                os.kill(int(str(job["pid"])), signal.SIGTERM)
    elif command == "sacct":
        print("OUT_OF_ME+")
    elif command == "srun":
        words = words[next(index for index, word in enumerate(words) if not word.startswith("-")) :]
        os.execvp(words[0], words)
    return 0


if __name__ == "__main__":
    inner = sys.argv[1:2] == ["run"]
    sys.exit(main("run" if inner else Path(sys.argv[0]).name, sys.argv[2 if inner else 1 :]))
