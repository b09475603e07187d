"""Data out of a hypothesis' words, without a language model: predictions, settings and testable claims."""

from rankwise.research.extract_claims import claims as claims
from rankwise.research.extract_names import proposed_name as proposed_name
from rankwise.research.extract_names import stem as stem
from rankwise.research.extract_numbers import Prediction as Prediction
from rankwise.research.extract_numbers import given as given
from rankwise.research.extract_numbers import predictions as predictions
from rankwise.research.extract_settings import Settings as Settings
from rankwise.research.extract_settings import settings as settings
