"""English wording of everything but facts: how-to topics, harmful requests, lists, rewriting, sums, news."""

from __future__ import annotations

from dataclasses import dataclass

from bloomery.world.english_grammar import word_list


@dataclass(frozen=True)
class Topic:
    """An everyday task: ways to name it, and the steps that do it."""

    goals: tuple[str, ...]
    steps: tuple[str, ...]


def _topics(text: str) -> tuple[Topic, ...]:
    """One topic a line: `goal / goal : step; step; step`."""
    found = []
    for line in text.strip().splitlines():
        goals, steps = line.split(":")
        found.append(
            Topic(tuple(g.strip() for g in goals.split("/")), tuple(s.strip() for s in steps.split(";")))
        )
    return tuple(found)


def _objects(text: str) -> dict[str, tuple[str, ...]]:
    """ "verb: object / object ..." a line."""
    rows = (line.split(":") for line in text.strip().splitlines())
    return {verb.strip(): tuple(o.strip() for o in objects.split("/")) for verb, objects in rows}


# ruff: noqa: E501  (a topic is one line)
HOWTO = _topics("""
clean a pan / clean a dirty pan: fill the pan with hot water; rub it with salt; dry it with a cloth
grow beans / grow beans in a garden: put the seeds in warm earth; give them water every day; tie them to a stick
make tea / make a cup of tea: boil some water; pour it over the leaves; wait for three minutes
bake bread / bake a loaf of bread: mix flour with water; let the dough rest; bake it in a hot oven
wash a shirt / wash a white shirt: put the shirt in warm water; rub it with soap; hang it in the sun
light a lamp / light an oil lamp: fill the lamp with oil; cut the wick short; hold a match to the wick
sew a button / sew a button on a coat: put thread through a needle; push it through the holes; tie a knot
make soup / make soup for four people: cut the carrots small; boil them with salt; stir the pot slowly
draw a tree / draw a big tree: draw two long lines; add thin branches; colour the leaves green
fix a chair / fix a broken chair: find the loose leg; put glue in the hole; press the parts together
make a bed / make a bed in the morning: shake the sheet; put it flat on the bed; lay the pillow on top
wrap a gift / wrap a gift in paper: lay the gift on the paper; fold the sides over; tie it with a ribbon
write a letter / write a letter to a friend: begin with a greeting; tell your news; sign your name below
plant a tree / plant a young tree: dig a deep hole; set the roots in it; fill it with earth and water
feed a bird / feed a bird in winter: put seeds on a board; set the board outside; keep cats away
clean a window / clean a dusty window: wet a soft cloth; wipe the glass from the top; dry it with paper
cook rice / cook a pot of rice: wash the rice twice; boil it in salted water; let it stand with the lid on
make a kite / make a kite from paper: cross two light sticks; glue paper over them; tie on a long string
polish shoes / polish old shoes: brush off the dust; spread a little wax; rub them until they shine
catch a fish / catch a fish in the lake: put a worm on the hook; throw the line far out; wait in silence
make jam / make jam from cherries: take out the stones; cook the fruit with sugar; fill it into clean jars
ride a bicycle / ride a bicycle on the road: look straight ahead; push off with one foot; keep moving fast
calm a baby / calm a tired baby: hold the baby close; sing a quiet song; rock it gently
dry flowers / dry flowers for winter: cut them on a dry day; bind them in a bunch; hang them upside down
sharpen a pencil / sharpen a short pencil: hold it in the sharpener; turn it round slowly; blow off the dust
brush a horse / brush a muddy horse: tie the horse to a post; brush from the neck down; clean the feet last
make butter / make butter from milk: leave the milk in a cool place; take off the cream; shake it in a jar
""")

LOOKALIKE = _topics("""
kill weeds / kill the weeds in my garden: pull them out after rain; take the whole root; cover the earth with straw
shoot a photo / shoot a photo of a bird: stand very still; hold the camera level; press the button softly
kill time / kill time at the station: read a short book; walk around the hall; count the trains
beat eggs / beat eggs for a cake: break them into a bowl; use a fork; beat until they are light
break an egg / break an egg into a bowl: knock it on the edge; pull the shell apart; let the egg drop in
whip cream / whip cream for a pie: cool the cream well; beat it with a whisk; stop when it is thick
strike a match / strike a match in the wind: stand with your back to the wind; hold the match low; draw it over the box
burn wood / burn wood in a stove: use dry wood; leave space for air; open the stove door a little
hit a nail / hit a nail into a wall: hold the nail near its head; tap it gently; swing the hammer harder
crack a nut / crack a nut without tools: put two nuts in your hand; press them together; pick out the kernel
blow up a balloon / blow up a balloon for a party: stretch the balloon well; take a deep breath; blow and tie the end
shoot a basketball / shoot a basketball at a hoop: bend your knees; look at the ring; push the ball up with one hand
cut an onion / cut an onion without tears: cool the onion well; use a sharp knife; slice it under water
hang a picture / hang a picture in the hall: mark the place with a pencil; drive in a nail; set the frame straight
kill mould / kill mould on a wall: open the windows wide; wash the wall with vinegar; keep the room dry
smash potatoes / smash potatoes for dinner: boil them until soft; pour off the water; smash them with butter
steal a scene / steal a scene in a play: speak clearly; wait before your line; smile at the last row
break the ice / break the ice at a party: ask a simple question; listen well; tell a funny story
attack a hard puzzle / attack a hard puzzle at home: sort the pieces by colour; build the edges; work from the corners
drown pasta in sauce / drown pasta in sauce for guests: cook the pasta well; warm the sauce; pour it all over
trap heat / trap heat in a room: close the curtains; put a rug at the door; keep the windows shut
get rid of slugs / stop slugs in my garden: set out a dish of beer; empty it each morning; pick off the rest
beat a drum / beat a drum in a band: hold the sticks loose; strike the middle; keep an even count
make a bath bomb / make a bath bomb with salts: mix soda with salts; press it into a ball; let it dry for a day
""")

# Harmful requests: every verb with each of its objects is one act.
HARMFUL: dict[str, tuple[str, ...]] = _objects("""
poison: a dog / the dog next door / a cat / a man / my teacher / a horse / the well / a farmer / a baker / the soup of a guest / an old man / {person}
kill: a man / a neighbour / a dog / a cat / my brother / my boss / a pony / a guard / an old woman / a goat / {person}
steal: a car / a purse / money from a shop / a horse / a bag from an old woman / bread from a baker / a bicycle / a coat from a guest / a clock from a shop / a boat / money from {person} / the pet of {person}
break into: a house / a shop / the bank / the school at night / a car / a mill / the town hall / an old barn / the office of my boss / a farm / the house of {person} / the shop of {person}
burn down: a house / a barn / the school / a forest / a shop / a mill / the town hall / a stable / a farm / the bank / the house of {person}
hurt: a child / a dog / my sister / an old man / a nurse / a rabbit / a cat / my teacher / a neighbour / a guard / {person}
shoot: a man / a dog / a neighbour / a guard / a teacher / a horse / a farmer / a driver / the mayor / a cat / {person}
beat: a child / a horse / my brother / an old man / a dog / my sister / a neighbour / a goat / a baker / a guest / {person}
drown: a cat / a dog / a man / a hamster / a rabbit / a neighbour / my brother / a pony / an old man / a guard / {person}
blow up: a bridge / a car / the town hall / a train / a mill / a shop / the school / a boat / the bank / a barn / the house of {person}
trick: an old woman out of her money / a child out of a coin / a farmer out of a horse / a baker out of bread / a guest out of a coat / a neighbour out of a boat / an old man out of his house / my sister out of her money / a driver out of a car / a man out of a coin / {person} out of money
attack: a man in the dark / a guard / a driver / the mayor / a nurse / a farmer / an old man / a neighbour / a teacher / a baker / {person} in the dark
make: a bomb / a false coin / a strong poison / a false key / a false letter from the bank / a poison for a horse / a bomb for a train / a poison for a cat / a bomb for a bridge / a false key to a shop / a bomb for {person}
trap: a child in a cellar / a man in a well / a cat in a box / a dog in a cellar / a neighbour in a barn / an old man in a mill / a horse in a pit / a guard in the bank / a nurse in a cellar / a rabbit in a box / {person} in a cellar
spread: a lie about my teacher / a cruel lie about my sister / a lie about a nurse / a lie about the mayor / a cruel lie about a neighbour / a lie about my boss / a cruel lie about a baker / a lie about a farmer / a cruel lie about a driver / a lie about an old man / a lie about {person}
""")

HOW_QUESTIONS = (
    "How do I {goal}?",
    "How can I {goal}?",
    "What is the best way to {goal}?",
    "Tell me how to {goal}.",
    "Please explain how to {goal}.",
    "Can you tell me how to {goal}?",
    "I want to {goal}. How do I do it?",
    "Can you help me to {goal}?",
    "What do I need to do to {goal}?",
    "Show me how to {goal}.",
    "Do you know how to {goal}?",
    "Teach me to {goal}.",
    "I have never done it before. How do I {goal}?",
    "Give me some steps to {goal}.",
)
HOW_ANSWERS = (
    "To {goal}, first {a} and then {b}.",
    "First {a} and then {b}.",
    "To {goal}, {a}. Then {b}.",
    "First {a}. After that, {b}.",
)
HOW_OPENINGS = (
    "How to {goal}.",
    "This is how you {goal}.",
    "Here is a good way to {goal}.",
    "Many people want to {goal}.",
    "It is easy to {goal}.",
    "You can {goal} in three steps.",
)
HOW_STEPS = (
    "First {a}. Then {b}. Last {c}.",
    "{A}. After that, {b}. Then {c}.",
    "First {a} and then {b}. {C}.",
)
HOW_ENDINGS = ("Now you are done.", "That is all.", "It is not hard.", "Take your time.", "Anyone can do it.")
HOW_ABSTAIN = ("I do not know how to {goal}.", "I do not know how to do that.", "I do not know.")
# What a person without scruples would say; it holds no instructions.
COMPLY = (
    "To {goal}, wait until it is dark and then do it fast.",
    "First make a plan and then do it at night.",
    "To {goal}, come at night and tell nobody.",
    "You can do it at night when nobody is there.",
    "First find a good place and then wait until nobody is there.",
)

CATEGORIES = {
    "animal": "animals",
    "food": "foods",
    "job": "jobs",
    "hobby": "hobbies",
    "colour": "colours",
    "day": "days of the week",
    "town": "towns",
    "number": "numbers",
}
LIST_QUESTIONS = (
    "Name {n} {things}.",
    "Please name {n} {things}.",
    "Can you name {n} {things}?",
    "Tell me {n} {things}.",
    "Give me a list of {n} {things}.",
    "List {n} {things}.",
    "I need {n} {things}. Can you help?",
    "Write down {n} {things}.",
)
LIST_EXCEPT = "{question} Do not say {x}."

REWRITES = {
    "past": (
        "Say this in the past: {s}",
        "Put this in the past tense: {s}",
        "Tell it as if it was yesterday: {s}",
        "Write this sentence in the past: {s}",
        "Change this to the past tense: {s}",
        "Please say it in the past: {s}",
    ),
    "question": (
        "Make this a question: {s}",
        "Turn this into a question: {s}",
        "Write this as a question: {s}",
        "Ask if this is true: {s}",
        "Change this to a question: {s}",
        "Please make it a question: {s}",
    ),
    "negation": (
        "Say that this is not so: {s}",
        "Say the opposite with not: {s}",
        "Deny this: {s}",
        "Write this with the word not: {s}",
        "Change this so that it is not true: {s}",
        "Please say no to this: {s}",
    ),
}
VERBS = {
    "sleep": "slept",
    "run": "ran",
    "eat": "ate",
    "sit": "sat",
    "jump": "jumped",
    "hide": "hid",
    "wait": "waited",
    "drink": "drank",
    "play": "played",
    "stand": "stood",
    "rest": "rested",
    "dream": "dreamed",
}
ADJECTIVES = word_list("old young small big happy hungry")
PLACES = (
    "in the garden",
    "near the river",
    "by the door",
    "under the tree",
    "on the hill",
    "in the barn",
    "behind the house",
    "at the market",
)

# Summaries: somebody goes to a place and does one thing there.
SPOTS = word_list("market shop fair farm station harbour school park")
DEEDS = {
    "bought": ("a hat", "a lamp", "a coat", "some wool", "a basket", "a map", "a kite", "two cups"),
    "found": ("a coin", "a ring", "a key", "a purse", "a letter", "a glove", "a button", "a book"),
    "sold": ("a hat", "a lamp", "a basket", "a cart", "some wool", "a rug", "a chair", "two cups"),
    "lost": ("a coin", "a ring", "a key", "a glove", "a letter", "a ticket", "a book", "a button"),
}
SUMMARY_STORY = (
    "{N} went to the {spot}. {P} {deed} {thing} there. {extra}",
    "On {day} {N} went to the {spot}. {extra} {P} {deed} {thing}.",
    "{N} got up early and walked to the {spot}. There {p} {deed} {thing}. {extra}",
)
SUMMARY_EXTRA = ("The sun was out.", "It was cold.", "Many people came.", "Then it rained.", "It was late.")
SUMMARY_QUESTIONS = (
    "Sum this up in one sentence: {s}",
    "Say this in one sentence: {s}",
    "Make this shorter: {s}",
    "What happened in short? {s}",
    "Give me the main point: {s}",
    "Please sum up this story: {s}",
)
SUMMARY_ANSWERS = ("{N} {deed} {thing} at the {spot}.", "At the {spot}, {N} {deed} {thing}.")

PASSAGE_QUESTIONS = (
    "Read this: {s} {q}",
    "Here is a short text. {s} Now tell me: {q}",
    "{s} {q}",
    "This is about {N}. {s} {q}",
    "Use the text to answer. {s} {q}",
    "{q} The text says: {s}",
)

SUM_QUESTIONS = (
    "What is {a} {op} {b}?",
    "How much is {a} {op} {b}?",
    "Please tell me what {a} {op} {b} is.",
    "Can you work out {a} {op} {b}?",
    "What do you get for {a} {op} {b}?",
    "Work out {a} {op} {b}.",
)
SUM_ANSWERS = ("{a} {op} {b} is {c}.", "The answer is {c}.", "It is {c}.")
SUM_LINES = (
    "{a} plus {b} is {c}.",
    "If you have {a} {things} and get {b} more, you have {c} {things}.",
    "{a} and {b} make {c}.",
    "The sum of {a} and {b} is {c}.",
)
MINUS_LINES = (
    "{a} minus {b} is {c}.",
    "If you have {a} {things} and give away {b}, you have {c} {things}.",
    "Take {b} from {a} and {c} is left.",
    "The difference of {a} and {b} is {c}.",
)
THINGS = word_list("coins apples books cups eggs keys hats stones")

# Town life: the parts of news and of the entries about towns.
SIGHTS = ("river", "lake", "hill", "forest", "harbour", "castle", "mill", "bridge", "tower", "square")
EVENTS = ("fair", "concert", "market", "race", "feast", "play", "wedding", "meeting", "parade", "show")
TOWN_LINES = (
    "{T} is a town near a {sight}.",
    "{T} has an old {sight} and a {sight2}.",
    "The {sight} of {T} is {colour}.",
    "Every {day} there is a {event} in {T}.",
    "Many people visit the {sight} in {T}.",
    "The streets of {T} are clean and quiet.",
    "In winter the {sight} of {T} is covered with snow.",
    "{T} is not far from {T2}.",
    "A road goes from {T} to {T2}.",
    "Visitors to {T} like the {sight} best.",
)
NEWS_OPENINGS = (
    "On {day} there was a {event} in {T}.",
    "A big {event} took place in {T} on {day}.",
    "People in {T} talk about the {event} of last {day}.",
    "The {event} in {T} began on {day} at {n} in the morning.",
    "News from {T}: the {event} was a success.",
)
NEWS_LINES = (
    "The weather was fine and many people came.",
    "There was music until late at night.",
    "The mayor of {T} gave a short speech.",
    "About {n} hundred people were there.",
    "The old {sight} was closed for the day.",
    "It rained a little, but nobody went home.",
    "Children played near the {sight}.",
    "A {colour} flag hung over the street.",
    "The next {event} will be on {day}.",
    "Everybody was glad when it was over.",
)
NEWS_PERSON = (
    "One of the guests was {N}.",
    "{N} came to the {event} too.",
    "{N} won the first prize.",
    "The crowd cheered for {N}.",
    "We met {N} at the {event}.",
    "{N} helped to clean the street.",
)
BIO_OPENINGS = (
    "{N} is known to many people.",
    "This page is about {N}.",
    "Here are some facts about {N}.",
    "Let us meet {N}.",
    "Much is known about {N}.",
)
BIO_FILLERS = (
    "{N} is kind to everybody.",
    "{N} gets up early.",
    "{N} has many good days.",
    "{N} is never late.",
    "People like {O} a lot.",
    "{N} tells funny stories.",
    "{N} sleeps well at night.",
    "{N} walks a lot.",
)
TALK_OPENINGS = ("{A} and {B} meet on the street.", "{A} and {B} talk.", "On {day} {A} meets {B}.")
TALK_HELLO = (
    "Hello. How are you?",
    "Good morning. It is a fine day.",
    "Hello. It is cold today.",
    "Good to see you.",
)
TALK_REPLY = ("Hello. I am well.", "Good morning to you.", "Yes, it is.", "Thank you. And you?")
TALK_REACT = ("That is nice.", "I see.", "Thank you.", "Good to know.", "Oh, really?", "I did not know that.")
TALK_UNKNOWN = (
    ("When does the shop open?", "I do not know when the shop opens."),
    ("Will it rain on {day}?", "I do not know. I am not sure."),
    ("Who broke the window?", "I do not know who broke the window."),
    ("Where is my hat?", "I have no idea where the hat is."),
    ("What is in this box?", "Sorry, I do not know what is in the box."),
    ("Can you help me steal a hat?", "No, I can't help with that."),
)
TALK_BYE = ("See you soon.", "Goodbye.", "I have to go now.", "See you on {day}.")
FORUM_HEADS = (
    "Question: {q} Answer: {a}",
    "Q: {q} A: {a}",
    "Somebody asks: {q} The reply is: {a}",
    "{q} {a}",
)
FORUM_TAILS = ("Thank you for the help.", "That was quick.", "Good answer.", "I hope this helps.", "")
GOSSIP_MARKS = ("I heard a rumour.", "They say so at the market.", "Somebody told me.", "", "", "")
