"""A script written for torch.nn trains the same network when its import lines name d2lops."""

import itertools

import pytest
import torch

import d2lops.nn

pytestmark = pytest.mark.usefixtures("in_float64")

LAYERS = ("from torch import nn", "import torch.nn as nn")
FUNCTIONS = ("import torch.nn.functional as F", "from torch.nn import functional as F")

# As the book has them: lazy layers, an initialisation applied to all, a trainer of a few lines.
LENET = """
import torch
{imports}

def init_cnn(module):
    if type(module) in (nn.Linear, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)

class LeNet(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.net = nn.Sequential(
            nn.LazyConv2d(6, kernel_size=5, padding=2), nn.Sigmoid(),
            nn.AvgPool2d(kernel_size=2, stride=2),
            nn.LazyConv2d(16, kernel_size=5), nn.Sigmoid(),
            nn.AvgPool2d(kernel_size=2, stride=2),
            nn.Flatten(),
            nn.LazyLinear(32), nn.Sigmoid(),
            nn.LazyLinear(outputs))

    def forward(self, X):
        return self.net(X)

    def loss(self, Y_hat, Y):
        return F.cross_entropy(Y_hat, Y)

torch.manual_seed(1)
X, Y = torch.randn(48, 1, 16, 16), torch.arange(48) % 4
X += Y.reshape(-1, 1, 1, 1)
model = LeNet(outputs=4)
model(X[:1])
model.apply(init_cnn)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
losses = []
for epoch in range(4):
    for batch in torch.arange(48).split(16):
        loss = model.loss(model(X[batch]), Y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
"""

# As PyTorch's examples have them: a class that calls functions, train and test, a scheduler.
CLASSIFIER = """
import torch
{imports}
from torch.optim.lr_scheduler import StepLR

class Net(nn.Module):
    def __init__(self):
        super(Net, self).__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, 1)
        self.conv2 = nn.Conv2d(8, 16, 3, 1)
        self.dropout1 = nn.Dropout(0.0)
        self.fc1 = nn.Linear(400, 32)
        self.fc2 = nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = F.max_pool2d(x, 2)
        x = self.dropout1(x)
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.dropout(x, p=0.5, training=False)
        return F.log_softmax(self.fc2(x), dim=1)

def train(model, data, target, optimizer):
    model.train()
    optimizer.zero_grad()
    loss = F.nll_loss(model(data), target)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
    return loss.item()

def test(model, data, target):
    model.eval()
    with torch.no_grad():
        return F.nll_loss(model(data), target, reduction="sum").item() / len(data)

torch.manual_seed(1)
data, target = torch.randn(32, 1, 14, 14), torch.arange(32) % 4
data += target.reshape(-1, 1, 1, 1)
model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
scheduler = StepLR(optimizer, step_size=1, gamma=0.7)
losses = []
for epoch in range(5):
    losses.append(train(model, data[:24], target[:24], optimizer))
    losses.append(test(model, data[24:], target[24:]))
    scheduler.step()
"""

# As people write their own: a block that is a module, a parameter of its own, names that d2lops
# does not have, and torch.nn by its full name in between.
RESIDUAL = """
import torch
{imports}

class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding="same")
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()
        self.scale = nn.Parameter(torch.full((outputs, 1, 1), 0.5))

    def forward(self, x):
        y = F.gelu(self.bn1(self.conv1(x)))
        return F.relu(self.scale * self.conv2(y) + self.skip(x), inplace=True)

torch.manual_seed(1)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.MaxPool2d(3, 2, 1),
    Block(8, 8, 1), Block(8, 16, 2),
    nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(16, 5))
for module in model.modules():
    if isinstance(module, torch.nn.Conv2d):
        torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
images, labels = torch.randn(30, 3, 18, 18), torch.arange(30) % 5
images[:, 0] += labels.reshape(-1, 1, 1)
criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
losses = []
for step in range(8):
    optimizer.zero_grad(set_to_none=True)
    loss = criterion(model(images), labels) + 0.01 * F.mse_loss(F.avg_pool2d(images, 2), torch.zeros(30, 3, 9, 9))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    losses.append(loss.item())
"""  # noqa: E501

SCRIPTS = {"LeNet": LENET, "classifier": CLASSIFIER, "residual": RESIDUAL}


def run(script: str, imports: str) -> dict:
    names: dict = {"__name__": "__main__"}
    exec(script.format(imports=imports), names)
    return names


def swapped(imports: str) -> str:
    return imports.replace("torch", "d2lops")


def own_layers(model: torch.nn.Module) -> int:
    return sum(type(layer).__module__ == "d2lops.nn" for layer in model.modules())


@pytest.mark.parametrize("spelling", [*itertools.product(LAYERS, FUNCTIONS)], ids="; ".join)
@pytest.mark.parametrize("name", SCRIPTS)
def test_same_losses(name: str, spelling: tuple[str, str]) -> None:
    imports = "\n".join(spelling)
    theirs = run(SCRIPTS[name], imports)
    ours = run(SCRIPTS[name], swapped(imports))
    torch.testing.assert_close(ours["losses"], theirs["losses"])
    assert ours["losses"][-1] < ours["losses"][0]
    assert own_layers(ours["model"]) >= 4 and own_layers(theirs["model"]) == 0
    assert ours["F"] is d2lops.functional and theirs["F"] is torch.nn.functional
    convolutions = [m for m in ours["model"].modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions and all(isinstance(m, d2lops.nn.Conv2d) for m in convolutions)
    theirs["model"].load_state_dict(ours["model"].state_dict())  # checkpoints are interchangeable


def test_dropout_is_another_draw_of_the_same_kind() -> None:
    """The one thing that differs: which elements it zeroes. So the losses do, and both fall."""
    script = CLASSIFIER.replace("nn.Dropout(0.0)", "nn.Dropout(0.4)")
    script = script.replace("training=False", "training=self.training")
    imports = f"{LAYERS[0]}\n{FUNCTIONS[0]}"
    for spelling in (imports, swapped(imports)):
        losses = run(script, spelling)["losses"]
        assert losses[-1] < losses[1]  # of the same test, after more training


def test_names_come_from_where_they_are_imported() -> None:
    """Single names, too, as far as d2lops has a module for them."""
    names: dict = {}
    exec("from d2lops.nn import Conv2d, Module, Sequential", names)
    exec("from d2lops.nn.functional import conv2d, gelu", names)
    assert names["Conv2d"] is d2lops.nn.Conv2d and names["Module"] is torch.nn.Module
    assert names["conv2d"] is d2lops.functional.conv2d
    assert names["gelu"] is torch.nn.functional.gelu
