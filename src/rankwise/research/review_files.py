"""Names of what a review writes into a project."""

REVIEW = "review.json"
PAGE = "report.html"
SETTLE = "settle.yaml"
PREMISE = "settle-premise.yaml"
