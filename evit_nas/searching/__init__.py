"""The search: evaluations that are never repeated, the study that proposes them, and the front it ends with."""
