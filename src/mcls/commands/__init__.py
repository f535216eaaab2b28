"""One file per command: `parser()` is its command line, `run(arguments)` returns the exit status.

Commands never import each other.
"""

COMMANDS = {
    "train": "train a classifier, or a sweep: mcls train [key=value ...] [-m]",
    "baseline": "simple classifiers to beat: mcls baseline [key=value ...]",
    "tune": "a learning rate to begin with: mcls tune lr [key=value ...]",
    "resume": "go on where a run stopped: mcls resume RUN [key=value ...]",
    "evaluate": "measure a run: mcls evaluate RUN [--split val|test]",
    "predict": "classify files with a finished run: mcls predict RUN INPUT ...",
    "serve": "the same over HTTP, with a page to try it: mcls serve RUN",
    "export": "a model in one file: mcls export RUN --format onnx|pt2|safetensors",
    "runs": "the runs in a folder, best first: mcls runs [DIR]",
    "compare": "two runs, and whether they differ: mcls compare RUN RUN",
    "board": "TensorBoard, arranged: mcls board [DIR]",
    "report": "one page of HTML to send to somebody: mcls report RUN",
    "completion": 'what makes TAB complete all this: eval "$(mcls completion bash)"',
    "data": "look at a data set: mcls data check [key=value ...]",
    "help": "what a key is for, its type, range and default: mcls help KEY",
}
