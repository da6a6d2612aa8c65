"""Every kernel on small inputs, to run under compute-sanitizer: `make gpu-sanitize`.

In every dtype and layout, at sizes that end inside a tile. What comes out is not looked at here.
"""

import torch

from tests.accuracy import DTYPES, layouts
from tests.every_operator import every_operator

SIZES = ((1, 3, 7, 9), (2, 32, 9, 33))


def main() -> None:
    for size in SIZES:
        image = torch.arange(torch.Size(size).numel(), device="cuda").sin().view(size)
        for dtype in DTYPES:
            for tf32 in (False, True) if dtype == torch.float32 else (False,):
                torch.backends.cuda.matmul.allow_tf32 = tf32
                torch.backends.cudnn.allow_tf32 = tf32
                for layout, x in layouts(image.to(dtype)).items():
                    every_operator(x)
                    torch.cuda.synchronize()
                    print(size, dtype, "TF32" * tf32, layout, flush=True)


if __name__ == "__main__":
    main()
