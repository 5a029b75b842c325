"""All models, one file each, and the table of their names, which imports none of them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers: `mmgen` offers every class of the table
    from mmgen.models.aligned import Aligned as Aligned
    from mmgen.models.answerer import Answerer as Answerer
    from mmgen.models.captioner import Captioner as Captioner
    from mmgen.models.class_language_model import ClassLanguageModel as ClassLanguageModel
    from mmgen.models.classifier import Classifier as Classifier
    from mmgen.models.discrete_vae import DiscreteVAE as DiscreteVAE
    from mmgen.models.edit import Edit as Edit
    from mmgen.models.factorized import Factorized as Factorized
    from mmgen.models.flow import Flow as Flow
    from mmgen.models.flow_matching import FlowMatching as FlowMatching
    from mmgen.models.gan import GAN as GAN
    from mmgen.models.glow import Glow as Glow
    from mmgen.models.mag import AdaptedTransformer as AdaptedTransformer
    from mmgen.models.mirror_gan import MirrorGAN as MirrorGAN
    from mmgen.models.multimodal_vae import MultimodalVAE as MultimodalVAE
    from mmgen.models.pixel_cnn import PixelCNN as PixelCNN
    from mmgen.models.psa_captioner import PseudoSelfAttentionCaptioner as PseudoSelfAttentionCaptioner
    from mmgen.models.redescriber import Redescriber as Redescriber
    from mmgen.models.sentence_vae import SentenceVAE as SentenceVAE
    from mmgen.models.style_transfer import StyleTransfer as StyleTransfer
    from mmgen.models.text_to_image import TextToImage as TextToImage
    from mmgen.models.vae import VAE as VAE
    from mmgen.models.vision_touch import VisionTouch as VisionTouch

# name in config.json -> module and class; a downloaded config can name only keys of this table
MODELS = {
    "classifier": "mmgen.models.classifier:Classifier",
    "class_language_model": "mmgen.models.class_language_model:ClassLanguageModel",
    "captioner": "mmgen.models.captioner:Captioner",
    "psa_captioner": "mmgen.models.psa_captioner:PseudoSelfAttentionCaptioner",
    "answerer": "mmgen.models.answerer:Answerer",
    "vae": "mmgen.models.vae:VAE",
    "sentence_vae": "mmgen.models.sentence_vae:SentenceVAE",
    "multimodal_vae": "mmgen.models.multimodal_vae:MultimodalVAE",
    "factorized": "mmgen.models.factorized:Factorized",
    "aligned": "mmgen.models.aligned:Aligned",
    "edit": "mmgen.models.edit:Edit",
    "style_transfer": "mmgen.models.style_transfer:StyleTransfer",
    "mag": "mmgen.models.mag:AdaptedTransformer",
    "vision_touch": "mmgen.models.vision_touch:VisionTouch",
    "glow": "mmgen.models.glow:Glow",
    "flow": "mmgen.models.flow:Flow",
    "discrete_vae": "mmgen.models.discrete_vae:DiscreteVAE",
    "pixel_cnn": "mmgen.models.pixel_cnn:PixelCNN",
    "text_to_image": "mmgen.models.text_to_image:TextToImage",
    "flow_matching": "mmgen.models.flow_matching:FlowMatching",
    "redescriber": "mmgen.models.redescriber:Redescriber",
    "mirror_gan": "mmgen.models.mirror_gan:MirrorGAN",
    "gan": "mmgen.models.gan:GAN",
}
