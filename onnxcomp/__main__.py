"""Runs the command line: `python -m onnxcomp`."""

from onnxcomp.cli.supervise import main

if __name__ == "__main__":
    main()
