"""The Motif-2 network: arguments, layers, initialisation, names in the released checkpoints."""

from titan_motif.model.args import FLAVORS, Motif2ModelArgs
from titan_motif.model.model import Motif2Model
from titan_motif.model.state_dict_adapter import Motif2StateDictAdapter

__all__ = ["FLAVORS", "Motif2Model", "Motif2ModelArgs", "Motif2StateDictAdapter"]
