"""Monitoring in production: alerts and dashboards that compare live figures with measured ones."""
