"""The embedded default: coloured shapes drawn from a caption, both stages, on two CPU cores in about ten minutes.

    python train.py                                  # this config, into runs/shapes
    python sample.py --workdir runs/shapes --prompt "a red circle"

The data are rendered on first use; nothing is downloaded. Every other config of this folder has the same fields.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "shapes"  # the working directory is runs/NAME by default
    config.seed = 0  # of everything that is random: the same seed, the same run
    config.dtype = "float32"  # of the networks' arithmetic; parameters and losses stay float32
    config.stages = ("first_stage", "latents", "diffusion", "evaluation")  # what is run, in this order

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices along the data axis; -1: all that fsdp leaves
    config.mesh.fsdp = 1  # devices over which parameters and optimizer state are split
    config.mesh.tensor = 1  # devices over which the products of attention and feed-forward layers are split

    config.compiler = "recommended"  # a TPU's compiler gets options that were seen to help | "default"

    config.data = ConfigDict()
    config.data.medium = "image"  # what is learnt and drawn: see ldm_jax/media
    config.data.source = "shapes"  # "shapes" | "folder" | "tfds"
    config.data.name = "shapes"  # the TFDS data set
    config.data.path = ""  # the folder of images, or TFDS data_dir; "" for shapes: ~/.cache/ldm_jax
    config.data.train_split = "train"  # parts are written "train[:95%]"
    config.data.validation_split = "validation"  # "train[95%:]" holds out a part
    config.data.image_column = "image"  # what the source calls the pictures
    config.data.caption_column = "caption"  # read only if the conditioner wants captions
    config.data.captions = ()  # in their place: for all pictures the same, of which one is drawn a visit; (): the data's own
    config.data.label_column = "label"  # read only if it wants classes
    config.data.label_map_column = ""  # of semantic maps; "": what the source calls it
    config.data.conditioning_column = ""  # of pictures for a ControlNet; "": what the source calls it
    config.data.boxes_column = ""  # of boxes and their classes, for layouts, such as "objects/bbox", "objects/label"
    config.data.box_labels_column = ""  # the classes beside boxes_column
    config.data.image_size = 32  # the side, or (height, width)
    config.data.crop = "center"  # "center" | "random"
    config.data.short_side = 0  # resized so before the crop; 0: as small as the crop allows; -1: not resized
    config.data.palette = ""  # label maps in colours instead of class numbers: a JSON file of the classes' colours
    config.data.flip = False  # left and right exchanged in half of the visits
    # How likely a training picture's size, turn, stretch and place are each changed in a visit, of which the network is told,
    # so that it draws straight ones: for few pictures, 0.12; needs latents.cache=False.
    config.data.augment = 0.0
    config.data.on_error = "raise"  # a corrupt image: "raise" | "skip" (and count)
    config.data.examples = (20_000, 1_000)  # shapes only: how many to train and validate on
    # shapes only: how often there are one, two and three objects; how often they are plain, striped and dotted; how far
    # single ones may be from the middle (1: anywhere). An easy mix, for about ten minutes; configs/shapes_all.py has all.
    config.data.counts = (0.9, 0.1, 0.0)
    config.data.fills = (1.0, 0.0, 0.0)  # as the lines above say
    config.data.spread = 0.3  # as the lines above say
    config.data.in_memory = True  # keep decoded images in RAM
    config.data.workers = 0  # processes that decode; 0: one thread

    config.first_stage = ConfigDict()
    config.first_stage.kind = "kl"  # "kl" | "vq" | "none" (diffusion in pixels)
    config.first_stage.path = ""  # a trained one to use: workdir or checkpoint; "": train it here
    config.first_stage.in_channels = 3
    config.first_stage.out_ch = 3
    config.first_stage.resolution = 32
    config.first_stage.ch = 16
    config.first_stage.ch_mult = (1, 2, 4)
    config.first_stage.num_res_blocks = 1  # of a level, and one more in the decoder; or one number a level, for both
    config.first_stage.shortcuts = True  # resolutions change past shortcuts; False: as in the paper
    config.first_stage.attn_resolutions = ()
    config.first_stage.attn_type = "none"
    config.first_stage.z_channels = 8
    config.first_stage.double_z = True
    config.first_stage.embed_dim = 8
    config.first_stage.n_embed = 0  # codebook entries, VQ only
    config.first_stage.unit_codes = False  # compare directions only
    config.first_stage.fsq_levels = ()  # VQ without a learnt codebook: how many values each channel may take
    config.first_stage.norm_num_groups = 4  # 32 groups would normalise each channel alone, and forget colours
    config.first_stage.dropout = 0.0

    config.first_stage_loss = ConfigDict()
    config.first_stage_loss.pixel = "l1"  # "l1" | "l2"
    config.first_stage_loss.reduction = "sum"  # over an image's numbers (KL models of the paper) | "mean" (VQ models)
    config.first_stage_loss.log_variance = 0.0  # of the decoder's output; the likelihood's, in pixels and LPIPS
    config.first_stage_loss.kl_weight = 1e-2  # of the divergence from N(0, 1), KL only; less of it: latents harder to draw
    config.first_stage_loss.perceptual_weight = 0.0  # of LPIPS; 0: none
    config.first_stage_loss.perceptual_path = ""  # VGG16 of torchvision, or a CompVis first stage; "random": untrained
    config.first_stage_loss.perceptual_linear_path = ""  # LPIPS's linear layers, where perceptual_path lacks them
    config.first_stage_loss.perceptual_widths = (64, 128, 256, 512, 512)  # VGG16's; narrower ones only for "random"
    config.first_stage_loss.disc_weight = 0.0  # of the adversarial term; 0: no discriminator
    config.first_stage_loss.disc_adaptive = True  # relative to the gradient of the other terms at the last convolution
    config.first_stage_loss.disc_start = 0  # the step from which it counts
    config.first_stage_loss.disc_factor = 1.0  # of both sides' adversarial losses from then on
    config.first_stage_loss.disc_loss = "hinge"  # "hinge" | "vanilla"
    config.first_stage_loss.disc_ndf = 64  # channels of the discriminator's first layer
    config.first_stage_loss.disc_layers = 3  # strided ones of the discriminator
    config.first_stage_loss.disc_actnorm = False  # normalises by ActNorm in place of batch norm
    config.first_stage_loss.disc_learning_rate = 2e-4  # of Adam (0.5, 0.9); 0: the autoencoder's
    config.first_stage_loss.r1_weight = 0.0  # of the penalty of the discriminator's gradient
    config.first_stage_loss.lecam_weight = 0.0  # of LeCam regularisation
    config.first_stage_loss.alternate = False  # True: a second forward pass for the discriminator, as in the reference
    config.first_stage_loss.codebook = "gradient"  # "gradient" | "ema": codes follow moving averages of their latents
    config.first_stage_loss.codebook_weight = 1.0  # of all of the codebook's terms, VQ only
    config.first_stage_loss.codebook_decay = 0.99  # "ema" only
    config.first_stage_loss.codebook_kmeans = 0  # batches whose latents' clusters are the first codes; 0: random codes
    config.first_stage_loss.codebook_restart = 0.0  # "ema" only: codes met less often a step start again; 0: never
    config.first_stage_loss.beta = 0.25  # of the commitment of latents to their codes, VQ only
    config.first_stage_loss.legacy_beta = False  # True: the reference's place for beta, on the codebook
    config.first_stage_loss.equivariance_weight = 0.0  # shrunk latents should decode to the shrunk image
    config.first_stage_loss.alignment_weight = 0.0  # of latents with the features of the perceptual network
    # The most noise that the decoder's latents have in half of the pictures, in deviations of their channels; KL models only.
    # docs/first_stages.md says what 0.5 gains and costs.
    config.first_stage_loss.latent_noise = 0.0

    config.first_stage_train = ConfigDict()
    config.first_stage_train.steps = 1800  # updates
    config.first_stage_train.batch_size = 8  # pictures of an update, over all devices
    config.first_stage_train.optimizer = "muon"  # "adamw", "muon", or one of optax ("lion"); training/optimizer.py has all
    config.first_stage_train.learning_rate = 2.5e-3  # its highest, after warm-up
    config.first_stage_train.warmup_steps = 20  # over which the learning rate rises from 0
    config.first_stage_train.decay = "cosine"  # after warm-up: "constant", "linear", "cosine", "wsd" or "inverse_sqrt"
    config.first_stage_train.b1 = 0.9  # decay of the gradients' mean
    config.first_stage_train.b2 = 0.99  # decay of their squares' mean
    config.first_stage_train.weight_decay = 0.0  # decoupled, times the learning rate
    config.first_stage_train.clip_norm = 1.0  # 0: off
    config.first_stage_train.mu_dtype = "float32"  # of the optimizer's first moments; "bfloat16" for less memory
    config.first_stage_train.ema_decay = 0.0  # 0: no EMA
    config.first_stage_train.accumulate = 1  # in how many parts a batch is looked at, for less memory
    config.first_stage_train.start_from = ""  # weights to go on from: a workdir or a checkpoint; "": random ones
    config.first_stage_train.best = "validation/psnr"  # the number by which the best checkpoint is kept
    config.first_stage_train.patience = 0  # looks in a row without a better one, after which the stage ends; 0: all steps
    config.first_stage_train.frozen = ()  # ("encoder", "quant_conv") trains the decoder alone, as Stable Diffusion's ft-EMA

    config.latents = ConfigDict()
    config.latents.scale = 0.0  # 0: one over the deviation of the latents, over scale_batches batches
    config.latents.shift = 0.0  # taken off the latents before they are scaled
    config.latents.standardise = True  # every channel to mean 0 and deviation 1, instead of one scale and shift
    config.latents.posterior = "sample"  # what is learnt of a KL model: draws from its posterior, or its means: "mode"
    config.latents.scale_batches = 64  # batches of the training set that scale and shift are measured on
    config.latents.cache = True  # posterior moments of the training set on disk, encoded once

    config.network = ConfigDict()
    config.network.kind = "unet"  # "unet" | "dit" | "mmdit", as in shapes_mmdit.py
    config.network.in_channels = 8
    config.network.out_channels = 8
    config.network.model_channels = 64
    config.network.num_res_blocks = 1
    config.network.attention_resolutions = (1, 2)
    config.network.channel_mult = (1, 1)
    config.network.num_heads = -1
    config.network.num_head_channels = 32
    config.network.use_spatial_transformer = True
    config.network.transformer_depth = 1
    config.network.context_dim = 64
    config.network.use_scale_shift_norm = True
    config.network.resblock_updown = False
    config.network.norm_num_groups = 8
    config.network.context_waves = 0  # cosines along each axis that the words steer at once; 3 in moving_shapes.py
    config.network.dropout = 0.0
    config.network.guidance_dim = 0  # sinusoids of the guidance scale, for objective "latent_consistency"; 0: it is not told
    config.network.second_time = False  # whether it is told how far it steps, for diffusion.objective of few steps

    config.conditioner = ConfigDict()
    config.conditioner.kind = "text"  # see ldm_jax/conditioning: none, class, label, text, clip_text, ...
    config.conditioner.n_embed = 64
    config.conditioner.n_layer = 1
    config.conditioner.heads = 4
    config.conditioner.dim_head = 32
    config.conditioner.max_seq_len = 26
    config.conditioner.vocab_size = 64  # at most; the tokenizer is trained on the captions
    config.conditioner.token_std = 0.3  # the deviation of the tokens' vectors at first; the reference's is 0.02
    config.conditioner.position_std = 0.02  # of the positions'; as long as words, it is learnt which word belongs to which
    config.conditioner.conv_kernel = 0  # words that a convolution sees at once before attention, odd; 0: none
    config.conditioner.tokenizer = "words"  # "words" | "wordpiece" | path of a tokenizer.json
    config.conditioner.new_words = ()  # that the tokenizer is to know besides, for what a model is to learn later
    config.conditioner.null_probability = 0.1  # how often training drops the condition

    config.diffusion = ConfigDict()
    config.diffusion.objective = "diffusion"  # or one of few steps, "mean_flow", "shortcut", ...: see shapes_few_steps.py
    config.diffusion.options = ConfigDict()  # of that objective, its own arguments
    config.diffusion.schedule = "cosine"  # one of diffusion.SCHEDULES
    config.diffusion.scale = 0.6  # of the cosine, less is more noise: 1 as published, 0.4 for few minutes; docs/training.md
    config.diffusion.prediction = "v"  # "eps" | "x0" | "v" | "flow"
    config.diffusion.loss = "l2"  # "l1" | "l2" | "huber"
    config.diffusion.weighting = "simple"  # of the loss over times: one of diffusion.WEIGHTINGS
    config.diffusion.time_sampling = "low_discrepancy"  # one of diffusion.TIMES, or "importance": by past losses
    config.diffusion.offset_noise = 0.0  # of N(0, 1) per image and channel, added to the noise
    config.diffusion.input_perturbation = 0.0  # of N(0, 1), added to the noise that the network sees
    config.diffusion.learned_variance = False  # the network has twice the channels; needs elbo_weight
    config.diffusion.elbo_weight = 0.0  # of the variational bound

    config.diffusion_train = ConfigDict()
    config.diffusion_train.steps = 2100
    config.diffusion_train.batch_size = 32
    config.diffusion_train.optimizer = "muon"  # "adamw", "muon", or one of optax ("lion"); training/optimizer.py has all
    config.diffusion_train.learning_rate = 5e-3
    config.diffusion_train.warmup_steps = 30
    config.diffusion_train.decay = "cosine"
    config.diffusion_train.b1 = 0.9
    config.diffusion_train.b2 = 0.99
    config.diffusion_train.weight_decay = 0.0
    config.diffusion_train.clip_norm = 1.0
    config.diffusion_train.mu_dtype = "float32"
    config.diffusion_train.ema_decay = 0.99  # of the averaged weights, which pictures are drawn with; 0: none
    config.diffusion_train.post_hoc = ()  # (0.05, 0.1): averages from which load(ema_width=) makes any other; (): none
    config.diffusion_train.accumulate = 1  # as above
    config.diffusion_train.start_from = ""  # a model to go on from, anything that load() reads; "": random weights

    config.diffusion_train.best = "validation/loss"  # as above; or a number of an evaluator
    config.diffusion_train.patience = 0  # as above
    config.diffusion_train.lora = ConfigDict()
    config.diffusion_train.lora.rank = 0  # above 0: `start_from` stays as it is, and a low-rank change of it is learnt
    config.diffusion_train.lora.alpha = 0.0  # the change is multiplied by alpha / rank; 0: by 1
    config.diffusion_train.lora.targets = ("to_q", "to_k", "to_v", "to_out_0")  # layers that are changed
    config.diffusion_train.dreambooth = ConfigDict()
    config.diffusion_train.dreambooth.prior_weight = 0.0  # of the loss of pictures that `start_from` draws of the class
    config.diffusion_train.dreambooth.class_prompt = ""  # what it is to draw, such as "a dog"
    config.diffusion_train.dreambooth.class_pictures = 200  # how many, into the working directory, before training
    config.diffusion_train.textual_inversion = ConfigDict()
    config.diffusion_train.textual_inversion.word = ""  # such as "<thing>": `start_from` stays as it is, and learns it
    config.diffusion_train.textual_inversion.initial = ""  # a word that it knows, as which the new one begins
    config.diffusion_train.textual_inversion.vectors = 1  # of the new word, and as many tokens of a prompt
    config.diffusion_train.control = ConfigDict()
    # A ControlNet for `start_from`, which stays as it is, is shown "conditioning", pictures of the data; "edges" or "grey",
    # made of the training pictures; "": none
    config.diffusion_train.control.picture = ""
    config.diffusion_train.control.hint_channels = ()  # of its encoder of pictures; (): 16, 32, 96, 256, as published

    config.sampling = ConfigDict()
    config.sampling.sampler = "dpmpp_2m"  # one of diffusion.SAMPLERS
    config.sampling.steps = 20  # of the sampler
    config.sampling.grid = "trailing"  # at which levels: one of diffusion.GRIDS
    config.sampling.guidance_scale = 4.0  # how much the condition counts: 1 is off

    config.evaluation = ConfigDict()
    config.evaluation.prompts = 240  # shapes only: held-out prompts whose pictures are read back; 0: none
    config.evaluation.batch_size = 16  # pictures drawn at once, in training and evaluation
    config.evaluation.num = 0  # pictures whose distance from the training pictures is measured after training; 0: none
    config.evaluation.features = "auto"  # what looks at them: Inception where its weights are named, else a probe trained here
    config.evaluation.probe_steps = 400  # training steps of that probe
    config.evaluation.inception_path = ""  # Inception's weights, for FID; "": none
    config.evaluation.which = "last"  # whose pictures: the "last" checkpoint's, or those of the "best"
    # What looks at the diffusion model while it trains, by name; others may be added. ldm_jax/experiment/evaluators has all.
    config.evaluation.evaluators = ConfigDict()
    config.evaluation.evaluators.distance = ConfigDict({"type": "distance", "every": 0, "num": 256, "features": "", "steps": 0})
    config.evaluation.evaluators.prompts = ConfigDict({"type": "prompts", "every": 0, "num": 120, "objects": 1})

    config.log = ConfigDict()
    config.log.every = 100  # steps between lines of metrics.jsonl; 0 is off, here and below
    config.log.images_every = 600  # steps between sample grids
    config.log.validation_every = 600  # steps between validations
    config.log.validation_images = 256  # at most
    config.log.watchdog_seconds = 0.0  # all stacks are written out when no step ends for so long; 0: off
    config.log.wandb = ""  # a project of Weights & Biases (pip install wandb) that is told as well; "": none
    config.log.profile = (0, 0)  # the first and the last step to trace; (0, 0): none

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 300  # steps between checkpoints; the last state is kept in any case
    config.checkpoint.snapshots = 0  # steps between snapshots of diffusion_train.post_hoc, which are all kept
    config.checkpoint.keep = 2  # the newest; the best is kept besides
    config.checkpoint.rewinds = 3  # how often a run that is no longer finite goes back to its last checkpoint
    return config


def plain_first_stage(config: ConfigDict) -> None:
    """The first stage that the configs which call this were measured with: four channels, no shortcuts, hardly any KL, fewer
    updates at a higher learning rate."""
    config.first_stage.shortcuts = False
    config.first_stage.z_channels = config.first_stage.embed_dim = 4
    config.network.in_channels = config.network.out_channels = 4
    config.first_stage_loss.kl_weight = 1e-4
    config.first_stage_train.steps = 1200
    config.first_stage_train.learning_rate = 4e-3


def as_published(config: ConfigDict) -> None:
    """Noise and words at first as the cosine and the reference have them, and fewer updates: what configs that call this were
    measured with."""
    config.diffusion.scale = 1.0
    config.diffusion_train.steps = 1800
    if "token_std" in config.conditioner:
        config.conditioner.token_std = 0.02


def first_stage_only(config: ConfigDict) -> None:
    """Leaves out what a first stage alone has no use for."""
    config.stages = ("first_stage",)
    for section in ("latents", "network", "conditioner", "diffusion", "diffusion_train", "sampling"):
        del config[section]
