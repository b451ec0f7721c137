"""Words for what is printed: common English nouns, and their split into seen and held-out ones."""

import numpy as np

_TEXT = """
ant ape arm art ash axe bag bar bat bay bed bee bell belt bench berry bike bird boat bolt bone book boot bottle bowl
box brain branch bread brick bridge broom brush bucket bud bulb bull bus bush button cabin cable cage cake calf
camel camera camp can candle cap car card carpet carrot cart castle cat cave chain chair chalk cheese cherry chest
chin circle city claw clay cliff clock cloth cloud clown coach coal coast coat coin comb cook copper coral corn
cotton couch cow crab crane crow crown cube cup curve daisy dam deer desk dew dish diver dog doll donkey door dove
dragon drawer dress drum duck dust eagle ear earth egg elbow elm engine exit extra eye face fan farm farmer feast
fence fern field fig finger fire fish fix flag flame flea flute fly fog food foot forest fork fort fox frame frog
fruit fuzzy garage garden gate gift glass globe glove glue goat gold goose grape grass green guitar gull gum hall
ham hammer hand harbor harp hat hawk hay head heart hedge heel helmet hen herb hill hook horn horse hotel house ice
idea ink iron island ivy jacket jam jar jazz jet jewel judge jug juice jungle kayak kettle key king kite kitten knee
knife knot koala ladder lake lamb lamp land lawn leaf lemon letter light lily lime lion lip lizard lock log magnet
map maple mask mat maze meadow melon metal milk mill mint mirror mix monkey moon moss moth mouse mouth mud mug
museum music nail neck needle nest net night noodle nose note number nurse nut oak oar oasis ocean office oil olive
onion orange orbit otter oval oven owl oyster page paint palace palm pan panda paper park parrot path peach pear
pearl pen pencil pepper piano pie pig pigeon pillow pilot pin pine pipe pizza planet plate plug plum pocket poem
pond pony pool poppy pot potato prince prize pump puppy purse puzzle quail quartz queen quilt quiz rabbit radio raft
rain rake raven reef ribbon rice ring river road robe robin robot rock roof room root rope rose rubber rug sack
saddle sail salad salt sand sauce saw scarf school screw sea seal seed shark sheep shelf shell ship shirt shoe
shovel silk silver sink skate ski sky sled snail snake snow soap sock sofa soil soup spade spider spoon spring
square squid stable stair stamp star steam stem stone stool stove street string sugar suit sun swan sweet swing
table tail tap taxi tea teeth tent text thumb ticket tiger tile tin toad toast tomato tongue tool tooth torch towel
tower town toy track trail train tray tree truck tube tulip tunnel turkey turtle unicorn valley van vase veil vest
vex village vine violin voice wagon wall walnut wasp watch water wave wax web whale wheat wheel willow window wine
wing wolf wood wool worm wrist yacht yard yarn yeti yogurt zebra zero zigzag zinc zipper zone zoo
"""
WORDS: tuple[str, ...] = tuple(_TEXT.split())
_WORD_STREAM = 1  # random streams of what is split: 0 glyphs, 1 words, 2 combinations of colour and shape


def split_words(share: float, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training words and held-out words, disjoint; every letter of a held-out word occurs in a training word.

    Args:
        share: of the words, held out. A word with a letter that would otherwise not be seen is not taken.
    """
    order = np.random.default_rng([seed, _WORD_STREAM]).permutation(len(WORDS)).tolist()
    heldout: set[int] = set()
    left = {letter: sum(letter in word for word in WORDS) for letter in sorted(set("".join(WORDS)))}
    for index in order:
        if len(heldout) == round(share * len(WORDS)):
            break
        letters = set(WORDS[index])
        if all(left[letter] > 1 for letter in letters):
            heldout.add(index)
            for letter in letters:
                left[letter] -= 1
    train = tuple(word for index, word in enumerate(WORDS) if index not in heldout)
    return train, tuple(WORDS[index] for index in sorted(heldout))
