"""Models: a Llama-family decoder with a language or a scalar head, its cache, and its files."""

from bloomery.models.cache import KVCache
from bloomery.models.config import LlamaConfig
from bloomery.models.families import build, families
from bloomery.models.hub import load, save
from bloomery.models.llama import Llama, ScalarModel, init

__all__ = ["KVCache", "Llama", "LlamaConfig", "ScalarModel", "build", "families", "init", "load", "save"]
