"""Runs the command line: `python -m onnxcomp`."""

from onnxcomp.cli.main import main

if __name__ == "__main__":
    main()
