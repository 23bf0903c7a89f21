"""The torch inference engine as ART sees it: launches `art_torch.server` and speaks to it. Imports no torch."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from art_core.base_model import ModelInfo
from art_core.capability import Capability
from art_core.checkpoint import StoredCheckpoint
from art_core.config import Timeouts
from art_core.errors import CapabilityError, ConfigError, EngineError, EngineStartError, EngineUnavailableError
from art_core.errors import from_wire
from art_core.process import Child, ProcessError
from art_core.protocols.engine import Endpoint, EngineHealth, EngineSpec, LoadedAdapter
from art_torch.options import TorchEngineOptions

log = logging.getLogger("art.engine")
