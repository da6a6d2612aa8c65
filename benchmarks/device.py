"""Which device is measured. torch's own default device would slow down every call of torch."""

name = "cpu"  # set once, before anything is measured


def on_gpu() -> bool:
    return name == "cuda"
