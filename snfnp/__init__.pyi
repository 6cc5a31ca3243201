"""The names of the package for editors and type checkers; at run time they are found lazily."""

from snfnp import data as data
from snfnp import gradcheck as gradcheck
from snfnp import layers as layers
from snfnp import maps as maps
from snfnp import rules as rules
from snfnp import training as training
from snfnp.data import Dataset as Dataset
from snfnp.data import load_dataset as load_dataset
from snfnp.density import FlowDensity as FlowDensity
from snfnp.errors import SnfnpError as SnfnpError
from snfnp.flow import Flow as Flow
from snfnp.gradcheck import check_gradient as check_gradient
from snfnp.gradcheck import check_layer as check_layer
from snfnp.gradcheck import check_map as check_map
from snfnp.gradcheck import check_rule as check_rule
from snfnp.layers import Layer as Layer
from snfnp.likelihood import Likelihood as Likelihood
from snfnp.models import PRESETS as PRESETS
from snfnp.ops import RandomKey as RandomKey
from snfnp.ops import get_ops as get_ops
from snfnp.parameters import Layout as Layout
from snfnp.training.options import TrainConfig as TrainConfig
from snfnp.training.options.user_models import register as register
from snfnp.training.progress import Record as Record
from snfnp.training.runs.folder import RunFolder as RunFolder
from snfnp.training.runs.load import load_pretrained as load_pretrained
from snfnp.training.runs.load import load_run as load_run
from snfnp.training.session import fit as fit
from snfnp.training.session import resume as resume
from snfnp.training.session import train as train

__version__: str
