"""`python -m keras_kare.experiments NAME`."""

from keras_kare.experiments.command import main

if __name__ == "__main__":
    main()
