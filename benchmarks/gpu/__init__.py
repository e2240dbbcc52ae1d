"""What is to be run on an NVIDIA GPU: the test suite, attention kernels, train steps of 1B models, beside torch.

    python -m benchmarks.gpu --output FOLDER

Needs no network. ``__main__`` says what runs; each part is a module that also runs alone.
"""
