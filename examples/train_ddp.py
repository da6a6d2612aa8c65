"""LeNet (D2L 7.6) learns handwritten digits on several processes, or machines, at once.

    torchrun --nproc-per-node 2 -m examples.train_ddp

Each process computes the gradient of its share of every batch, on a GPU of its own where there are
GPUs, and DistributedDataParallel averages the gradients. So the network learns alike, however many
share the work. Without torchrun, one process does all of it. Fails if the network does not reach
97 % on the digits that it was not trained on.
"""

import argparse
import os
import sys
import time

import torch
from rich.console import Console
from torch import Tensor, distributed
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from d2lops import nn
from examples import book, lenet

BATCH = 32  # of all processes together
LEARNING_RATE = 1e-2  # at most: it rises to this and falls again, once
REQUIRED_ACCURACY = 0.97


def join() -> torch.device:
    """Meet the other processes that torchrun has started, if it has; the device to compute on."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        distributed.init_process_group(backend)
    else:
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    return device


def train(images: Tensor, labels: Tensor, epochs: int, device: torch.device) -> torch.nn.Module:
    torch.manual_seed(0)
    network = lenet.lenet(nn)
    network.apply(book.xavier)
    replica = DistributedDataParallel(network.to(device))
    dataset = TensorDataset(images, labels)
    sampler = DistributedSampler(dataset)  # deals the images out, in another order in each epoch
    share = max(1, BATCH // distributed.get_world_size())
    batches = DataLoader(dataset, share, sampler=sampler)
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, epochs=epochs, steps_per_epoch=len(batches)
    )
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for image, label in batches:
            optimizer.zero_grad()
            cross_entropy(replica(image.to(device)), label.to(device)).backward()
            optimizer.step()
            schedule.step()
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 epochs, whatever they reach")
    quick = parser.parse_args().quick
    epochs = 4 if quick else 25
    device = join()
    images, labels, test_images, test_labels = book.digits(28)
    start = time.perf_counter()
    network = train(images, labels, epochs, device)
    seconds = time.perf_counter() - start
    count, rank = distributed.get_world_size(), distributed.get_rank()
    distributed.destroy_process_group()
    if rank != 0:
        return
    reached = book.accuracy(network, test_images.to(device), test_labels.to(device))
    Console().print(
        f"{count} {'process' if count == 1 else 'processes'}: "
        f"{epochs * len(images) / seconds:,.0f} images a second, "
        f"test accuracy {reached:.1%} after {epochs} epochs"
    )
    if reached < REQUIRED_ACCURACY and not quick:
        sys.exit(f"the network stayed below {REQUIRED_ACCURACY:.0%}")


if __name__ == "__main__":
    main()
