"""What agents have learnt, as numbers, figures and videos."""
