"""The published sets beside CUB: who reads each, what its folder is called, and what is fetched from where.

The MD5s are those that public readers (torchvision and others) state.
"""

from data import Published
from readers import aircraft, cars, coop, flowers, food, pets

OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/"

FLOWERS = Published(
    read=flowers.read,
    title="Oxford Flowers-102",
    folders=("flowers-102", "flowers102", "oxford_flowers", "flowers"),
    images="jpg",
    url=OXFORD + "flowers/102/",
    files={
        "102flowers.tgz": "52808999861908f626f3c1f4e79d11fa",
        "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
        "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
        "https://raw.githubusercontent.com/udacity/pytorch_challenge/master/cat_to_name.json": None,
    },
    read_coop=coop.flowers,
    coop_file=coop.FLOWERS,
)

FOOD = Published(
    read=food.read,
    title="Food-101",
    folders=("food-101", "food101", "food"),
    images="images",
    url="http://data.vision.ee.ethz.ch/cvl/",
    files={"food-101.tar.gz": "85eeb15f3717b99a5da872d97d918f87"},
    read_coop=coop.food,
    coop_file=coop.FOOD,
)

PETS = Published(
    read=pets.read,
    title="Oxford-IIIT Pets",
    folders=("oxford-iiit-pet", "oxford_pets", "pets"),
    images="images",
    url=OXFORD + "pets/data/",
    files={
        "images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
        "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f",
    },
    find_image=pets.find_image,
    read_coop=coop.pets,
    coop_file=coop.PETS,
)

CARS = Published(
    read=cars.read,
    title="Stanford Cars",
    folders=("stanford_cars", "stanford-cars", "cars", "car_data"),
    images=".",
    url="someone's copy (Stanford's host is gone; a re-host in folders train/CLASS and test/CLASS will do)",
    files={
        "cars_train.tgz": None,
        "cars_test.tgz": None,
        "car_devkit.tgz": None,
        "cars_test_annos_withlabels.mat": None,
    },
    find_image=cars.find_image,
    hint=": is cars_test_annos_withlabels.mat missing?",
)

AIRCRAFT = Published(
    read=aircraft.read,
    title="FGVC-Aircraft",
    folders=("fgvc-aircraft-2013b", "fgvc_aircraft", "aircraft", "data"),
    images="images",
    url=OXFORD + "fgvc-aircraft/archives/",
    files={"fgvc-aircraft-2013b.tar.gz": "d4acdd33327262359767eeaa97a4f732"},
)

SETS = {"flowers": FLOWERS, "food": FOOD, "pets": PETS, "cars": CARS, "aircraft": AIRCRAFT}
