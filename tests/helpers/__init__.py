"""What the tests share. No test imports another test: what two of them need stands here."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
