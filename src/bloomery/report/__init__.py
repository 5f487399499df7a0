"""One self-contained HTML page that shows what every step of a run did."""

from __future__ import annotations

from bloomery.report.page import build

__all__ = ["build"]
