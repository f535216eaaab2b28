"""Makes the pictures of the README: `python docs/images/make.py [DATA_ROOT]`; for board.png it needs chromium.

The runs take a minute on two cores, in a temporary folder; MNIST is read from DATA_ROOT, or downloaded to it.
"""

import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image, ImageDraw

HERE = Path(__file__).parent
MCLS = [sys.executable, "-m", "mcls"]
WIDTH, HEIGHT = 1200, 760  # of the browser's window, in pixels
RENDERED = 10  # seconds that TensorBoard gets to read the runs, and to draw


def main(root: str) -> None:
    """Draw a digit, train, copy the figures, and photograph TensorBoard."""
    draw_seven()
    with tempfile.TemporaryDirectory() as folder:

        def train(*keys: str) -> None:
            subprocess.run([*MCLS, "train", *keys, "device=cpu"], cwd=folder, check=True)

        train("outputs=blobs")
        (run,) = Path(folder, "blobs").glob("*/*")
        shutil.copy(run / "figures" / "regions.png", HERE)
        mnist = ("dataset=mnist", f"dataset.root={root}", "outputs=mnist", "trainer.epochs=5")
        train(*mnist, "-m", "optimizer.lr=0.001,0.01,0.1", "sweep.name=mnist-lr")
        (matrix,) = Path(folder, "mnist").glob("**/confusion.png")  # of the selected job
        shutil.copy(matrix, HERE)
        if shutil.which("chromium"):
            photograph_board(Path(folder))


def draw_seven() -> None:
    """A digit to try `mcls predict` on, as seven.png: white on black, 28 x 28, with smooth edges as MNIST has them."""
    large = Image.new("L", (280, 280))
    ImageDraw.Draw(large).line([(80, 80), (200, 76), (165, 140), (130, 210)], fill=255, width=22, joint="curve")
    large.resize((28, 28), Image.Resampling.LANCZOS).save(HERE / "seven.png")


def photograph_board(folder: Path) -> None:
    """A screenshot of `mcls board` on the sweep, as board.png."""
    sys.path.append(str(HERE.parents[1] / "tests"))
    from browser import Tab

    with subprocess.Popen([*MCLS, "board", "mnist"], cwd=folder, stdout=subprocess.PIPE, text=True) as board:
        assert board.stdout is not None
        url = board.stdout.readline().strip()
        urllib.request.urlopen(f"{url.partition('?')[0]}data/plugins_listing").close()  # it then looks for a projector
        time.sleep(RENDERED)  # TensorBoard reads the runs
        with Tab(url, folder) as tab:
            size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
            tab.call("Emulation.setDeviceMetricsOverride", **size)
            tab.call("Emulation.setScrollbarsHidden", hidden=True)
            buttons = "[...document.querySelectorAll('button')]"
            tab.value(
                f"(b => b && (b.click(), true))({buttons}.find(b => b.textContent.includes('Settings')))"
            )  # closed
            time.sleep(RENDERED)
            tab.screenshot(HERE / "board.png")
        board.terminate()


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()) if len(sys.argv) > 1 else "data")
