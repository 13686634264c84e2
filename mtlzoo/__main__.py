"""`python -m mtlzoo COMMAND`: the command line where its script is not on the path."""

from mtlzoo.cli import main

if __name__ == "__main__":
    main()
