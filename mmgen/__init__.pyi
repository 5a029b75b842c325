__version__: str

from mmgen.data.batch import Batch as Batch
from mmgen.data.batch import collate as collate
from mmgen.data.cards import open_card as open_card
from mmgen.inference.generate import generate as generate
from mmgen.models.aligned import Aligned as Aligned
from mmgen.models.answerer import Answerer as Answerer
from mmgen.models.base import Model as Model
from mmgen.models.base import load as load
from mmgen.models.captioner import Captioner as Captioner
from mmgen.models.class_language_model import ClassLanguageModel as ClassLanguageModel
from mmgen.models.classifier import Classifier as Classifier
from mmgen.models.discrete_vae import DiscreteVAE as DiscreteVAE
from mmgen.models.edit import Edit as Edit
from mmgen.models.factorized import Factorized as Factorized
from mmgen.models.mag import AdaptedTransformer as AdaptedTransformer
from mmgen.models.mirror_gan import MirrorGAN as MirrorGAN
from mmgen.models.multimodal_vae import MultimodalVAE as MultimodalVAE
from mmgen.models.psa_captioner import PseudoSelfAttentionCaptioner as PseudoSelfAttentionCaptioner
from mmgen.models.redescriber import Redescriber as Redescriber
from mmgen.models.sentence_vae import SentenceVAE as SentenceVAE
from mmgen.models.style_transfer import StyleTransfer as StyleTransfer
from mmgen.models.text_to_image import TextToImage as TextToImage
from mmgen.models.vae import VAE as VAE
from mmgen.models.vision_touch import VisionTouch as VisionTouch
