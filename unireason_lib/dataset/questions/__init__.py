"""Questions of six families, with four options each, about what is outlined in a study and visible.

=======================  ========================================================================
structure localization   ``box`` (which box encloses it), ``structure`` (which one a box marks)
spatial localization     ``quadrant`` (patient directions), ``level`` (quarter of the slices),
                         ``host`` (organ around a lesion), ``place`` (of a lesion in its host)
existence verification   ``pair`` (which of two), ``count`` (of lesions)
size comparison          ``span`` (percent of the image's width), ``extent`` (mm)
spatial relationship     ``relation`` (patient directions), ``offset`` (left to right, percent)
lesion analysis          ``texture``, ``density``
=======================  ========================================================================

Exactly one option is true by measurement. Left and right are the patient's, and millimetres are
those of the scan, where it states them. What the images do not show (:meth:`View.visible`) is never
asked about, and absent are only names that the source looked for and did not find. Where the answer
is a measurement, the wrong options are those of other patients: nothing tells them apart but the
images.

Anatomy answers many questions by itself: :func:`learn_prior` learns what can be known without
looking; with it :func:`ask` keeps questions such that this knowledge is worth nothing, and
:func:`question_only_baseline` measures what remains.
"""

from unireason_lib.dataset.questions.anatomy import WORDS
from unireason_lib.dataset.questions.ask import FAMILIES, Question, ask, learn_prior
from unireason_lib.dataset.questions.baseline import BaselineScore, question_only_baseline
from unireason_lib.dataset.questions.prior import AnswerPrior, Fact, keep_probability

__all__ = ["FAMILIES", "WORDS", "AnswerPrior", "BaselineScore", "Fact", "Question"]
__all__ += ["ask", "keep_probability", "learn_prior", "question_only_baseline"]
