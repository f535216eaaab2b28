"""One file per command: `parser()` is its command line, `run(arguments)` returns the exit status.

Commands never import each other.
"""

COMMANDS = {
    "train": "train a classifier, or sweep over many: mcls train [key=value ...] [-m]",
    "baseline": "simple classifiers to beat, on the same splits: mcls baseline [key=value ...]",
    "tune": "a learning rate to begin with, by a range test: mcls tune lr [key=value ...]",
    "resume": "go on where a run stopped: mcls resume RUN [key=value ...]",
    "evaluate": "measure a run: mcls evaluate RUN [--split val|test]",
    "predict": "classify files with a finished run: mcls predict RUN INPUT ...",
    "serve": "the same over HTTP, with a page to try it: mcls serve RUN",
    "export": "bring a model elsewhere: mcls export RUN --format onnx|pt2|safetensors",
    "runs": "the runs in a folder, best first: mcls runs [DIR]",
    "compare": "what differs between two runs, and whether it matters: mcls compare RUN RUN",
    "board": "TensorBoard, arranged: mcls board [DIR]",
    "report": "one page of HTML to send to somebody: mcls report RUN",
    "completion": 'what makes TAB complete all this: eval "$(mcls completion bash)"',
    "data": "look at a data set without training: mcls data check [key=value ...]",
}
