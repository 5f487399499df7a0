"""Every planted fault, in the order of the floors of the house."""

from __future__ import annotations

from mutations.in_data import DATA
from mutations.in_judgement import JUDGEMENT
from mutations.in_lab import LAB
from mutations.in_models import MODELS
from mutations.in_objectives import OBJECTIVES
from mutations.in_search import SEARCH
from mutations.in_training import TRAINING
from mutations.mutation import Mutation

MUTATIONS: tuple[Mutation, ...] = (
    *OBJECTIVES,
    *MODELS,
    *DATA,
    *JUDGEMENT,
    *TRAINING,
    *SEARCH,
    *LAB,
)
