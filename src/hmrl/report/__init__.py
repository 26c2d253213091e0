"""``hmrl report``: tables and figures from any number of finished or running runs."""
