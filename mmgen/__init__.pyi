__version__: str

from mmgen.data.batch import Batch as Batch
from mmgen.data.batch import collate as collate
from mmgen.data.cards import open_card as open_card
from mmgen.inference.generate import generate as generate
from mmgen.models import *  # noqa: F403
from mmgen.models.base import Model as Model
from mmgen.models.base import load as load
