"""Networks, reached through the dotted paths of conf/model."""

from nncompress.models.cnn import NNBCDCNN
from nncompress.models.densenet import DenseNet
from nncompress.models.mlp import MLP, LeNet5, ResidualMLP
from nncompress.models.preresnet import PreResNet
from nncompress.models.resnet import ResNet18
from nncompress.models.vgg import VGG
from nncompress.models.wide_resnet import WideResNet

__all__ = ["MLP", "NNBCDCNN", "VGG", "DenseNet", "LeNet5", "PreResNet", "ResNet18", "ResidualMLP", "WideResNet"]
