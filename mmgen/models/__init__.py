"""All models, one file each, and the table of their names, which imports none of them."""

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
    "discrete_vae": "mmgen.models.discrete_vae:DiscreteVAE",
    "text_to_image": "mmgen.models.text_to_image:TextToImage",
    "redescriber": "mmgen.models.redescriber:Redescriber",
    "mirror_gan": "mmgen.models.mirror_gan:MirrorGAN",
}
