"""The specs of core's datasets; each names the function that loads it. No torch here."""

from __future__ import annotations

from dataclasses import replace

from cnn_core.specs import DatasetSpec

__all__ = ["DATASETS"]

DIGITS = DatasetSpec(
    name="digits",
    target="cnn_core.data.readers.digits:load",
    summary="1,797 real handwritten digits, 8x8, shipped with cnn-core",
    classes=tuple("0123456789"),
    image=(1, 8, 8),
    splits={"train": 1438, "test": 359},
    mean=(0.305,),
    std=(0.376,),
    fit="resize",
    embedded=True,
    licence="CC BY 4.0",
    citation=(
        "E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, "
        "UCI Machine Learning Repository, doi:10.24432/C50P49"
    ),
    homepage="https://archive.ics.uci.edu/dataset/80",
)

MNIST = DatasetSpec(
    name="mnist",
    target="cnn_core.data.readers.mnist:load",
    summary="70,000 handwritten digits, 28x28",
    classes=tuple("0123456789"),
    image=(1, 28, 28),
    splits={"train": 60_000, "test": 10_000},
    mean=(0.1307,),
    std=(0.3081,),
    fit="pad",
    licence="CC BY-SA 3.0",
    citation=(
        "Y. LeCun, L. Bottou, Y. Bengio and P. Haffner (1998), Gradient-based learning "
        "applied to document recognition, Proceedings of the IEEE 86(11)"
    ),
    homepage="http://yann.lecun.com/exdb/mnist/",
)

FASHION_CLASSES = (
    "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
)

FASHION_MNIST = DatasetSpec(
    name="fashion_mnist",
    target="cnn_core.data.readers.mnist:load",
    summary="70,000 images of clothes, 28x28: a drop-in replacement for MNIST",
    classes=tuple(FASHION_CLASSES.split(", ")),
    image=(1, 28, 28),
    splits={"train": 60_000, "test": 10_000},
    mean=(0.2860,),
    std=(0.3530,),
    fit="pad",
    licence="MIT",
    citation=(
        "H. Xiao, K. Rasul and R. Vollgraf (2017), Fashion-MNIST: a novel image dataset "
        "for benchmarking machine learning algorithms, arXiv:1708.07747"
    ),
    homepage="https://github.com/zalandoresearch/fashion-mnist",
)

DIGIT_SCENES = DatasetSpec(
    name="digit_scenes",
    target="cnn_core.data.readers.scenes:load",
    summary="real digits on a textured background, 64x64, with masks; generated, no download",
    task="segmentation",
    classes=("background", "digit"),
    image=(1, 64, 64),
    splits={"train": 1000, "test": 200},
    mean=(0.364,),
    std=(0.155,),
    embedded=True,
    licence=DIGITS.licence,
    citation=DIGITS.citation,
    homepage=DIGITS.homepage,
)

CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR10_CLASSES: tuple[str, ...] = tuple(CIFAR10_NAMES.split())

CIFAR10 = DatasetSpec(
    name="cifar10",
    target="cnn_core.data.readers.cifar:load",
    summary="60,000 colour photographs in 10 classes, 32x32",
    classes=CIFAR10_CLASSES,
    image=(3, 32, 32),
    splits={"train": 50_000, "test": 10_000},
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    licence="none stated; its page asks for the citation",
    citation=(
        "A. Krizhevsky (2009), Learning multiple layers of features from tiny images, "
        "technical report, University of Toronto"
    ),
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
)

# In the order of the labels, which is alphabetical (fine_label_names in the file `meta`).
CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES: tuple[str, ...] = tuple(CIFAR100_NAMES.split())

CIFAR100 = DatasetSpec(
    name="cifar100",
    target="cnn_core.data.readers.cifar:load",
    summary="60,000 colour photographs in 100 classes, 32x32",
    classes=CIFAR100_CLASSES,
    image=(3, 32, 32),
    splits={"train": 50_000, "test": 10_000},
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    licence=CIFAR10.licence,
    citation=CIFAR10.citation,
    homepage=CIFAR10.homepage,
)

STL10_CLASSES = "airplane bird car cat deer dog horse monkey ship truck"

STL10 = DatasetSpec(
    name="stl10",
    target="cnn_core.data.readers.stl10:load",
    summary="13,000 labelled colour photographs in 10 classes, 96x96",
    classes=tuple(STL10_CLASSES.split()),
    image=(3, 96, 96),
    splits={"train": 5_000, "test": 8_000},
    mean=(),
    std=(),
    licence="none stated; its page asks for the citation",
    citation=(
        "A. Coates, H. Lee and A. Y. Ng (2011), An analysis of single-layer networks in "
        "unsupervised feature learning, AISTATS"
    ),
    homepage="https://cs.stanford.edu/~acoates/stl10/",
)

# In the order of the labels, spelled as in the file names.
PETS_BREEDS = """
Abyssinian american_bulldog american_pit_bull_terrier basset_hound beagle Bengal Birman Bombay
boxer British_Shorthair chihuahua Egyptian_Mau english_cocker_spaniel english_setter
german_shorthaired great_pyrenees havanese japanese_chin keeshond leonberger Maine_Coon
miniature_pinscher newfoundland Persian pomeranian pug Ragdoll Russian_Blue saint_bernard
samoyed scottish_terrier shiba_inu Siamese Sphynx staffordshire_bull_terrier wheaten_terrier
yorkshire_terrier
"""
PETS_SPLITS = {"train": 3_680, "test": 3_669}
PETS_CITATION = (
    "O. M. Parkhi, A. Vedaldi, A. Zisserman and C. V. Jawahar (2012), Cats and dogs, CVPR"
)


def _pets(
    name: str, target: str, summary: str, classes: tuple[str, ...], task: str
) -> DatasetSpec:
    """Return the spec of one task on the images of Oxford-IIIT Pets."""
    return DatasetSpec(
        name=name,
        target=f"cnn_core.data.readers.pets:{target}",
        summary=summary,
        task=task,
        classes=classes,
        image=(3, 0, 0),
        splits=PETS_SPLITS,
        mean=(),
        std=(),
        licence="CC BY-SA 4.0",
        citation=PETS_CITATION,
        homepage="https://www.robots.ox.ac.uk/~vgg/data/pets/",
    )


PETS = _pets(
    "pets",
    "load_breeds",
    "7,349 photographs of cats and dogs of 37 breeds",
    tuple(PETS_BREEDS.split()),
    "classification",
)
PETS_SPECIES = _pets(
    "pets_species", "load_species", "pets: cat or dog", ("cat", "dog"), "classification"
)
PETS_SEGMENTATION = _pets(
    "pets_segmentation",
    "load_masks",
    "pets: a mask of the pet; its border is ignored",
    ("background", "pet"),
    "segmentation",
)
PETS_TRIMAP = _pets(
    "pets_trimap",
    "load_trimaps",
    "pets: background, pet and border as three classes",
    ("background", "pet", "border"),
    "segmentation",
)

ISBI_EM = DatasetSpec(
    name="isbi_em",
    target="cnn_core.data.readers.isbi:load",
    summary="30 electron microscopy slices of a fly's nerve cord: membrane or cell, 512x512",
    task="segmentation",
    classes=("membrane", "cell"),
    image=(1, 512, 512),
    splits={"train": 24, "test": 6},
    mean=(0.491,),
    std=(0.173,),
    licence="for research",
    citation=(
        "I. Arganda-Carreras and others (2015), Crowdsourcing the creation of image segmentation "
        "algorithms for connectomics, Frontiers in Neuroanatomy 9:142"
    ),
    homepage="https://imagej.net/events/isbi-2012-segmentation-challenge",
)

IMAGEFOLDER = DatasetSpec(
    name="imagefolder",
    target="cnn_core.data.readers.folders:load_images",
    summary="your own images, one folder per class: imagefolder:PATH",
    folder=True,
    classes=(),
    image=(3, 0, 0),
    splits={},
    mean=(),
    std=(),
    licence="your own",
    citation="",
    homepage="",
)

MASKFOLDER = DatasetSpec(
    name="maskfolder",
    target="cnn_core.data.readers.masks:load_masks",
    summary="your own images and masks, images/NAME.* and masks/NAME.*: maskfolder:PATH",
    task="segmentation",
    folder=True,
    classes=(),
    image=(3, 0, 0),
    splits={},
    mean=(),
    std=(),
    licence="your own",
    citation="",
    homepage="",
)

CSV = replace(
    IMAGEFOLDER,
    name="csv",
    target="cnn_core.data.readers.csv_file:load",
    summary="your own images, with a row for each in a labels file: csv:FILE",
)

OBJECT = replace(
    IMAGEFOLDER,
    name="object",
    target="cnn_core.data.readers.objects:load",
    summary="a table, or a dataset of torchvision or Hugging Face, given in Python",
)

DATASETS = [
    DIGITS,
    DIGIT_SCENES,
    MNIST,
    FASHION_MNIST,
    CIFAR10,
    CIFAR100,
    STL10,
    PETS,
    PETS_SPECIES,
    PETS_SEGMENTATION,
    PETS_TRIMAP,
    ISBI_EM,
    IMAGEFOLDER,
    MASKFOLDER,
    CSV,
    OBJECT,
]
