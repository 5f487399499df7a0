"""The embedded microworld: people and facts, documents, questions, demonstrations, an oracle, annotators."""

from bloomery.world.annotators import Judgement, SimulatedAnnotator, annotators
from bloomery.world.answers import STYLES, Style, demonstrations, written
from bloomery.world.documents import documents
from bloomery.world.files import read_questions, read_world
from bloomery.world.oracle import GRADES, Grade, Oracle, Verdict
from bloomery.world.people import ATTRIBUTES, Fact, Person, World
from bloomery.world.questions import MIX, Question, questions

__all__ = [
    "ATTRIBUTES",
    "GRADES",
    "MIX",
    "STYLES",
    "Fact",
    "Grade",
    "Judgement",
    "Oracle",
    "Person",
    "Question",
    "SimulatedAnnotator",
    "Style",
    "Verdict",
    "World",
    "annotators",
    "demonstrations",
    "documents",
    "questions",
    "read_questions",
    "read_world",
    "written",
]
