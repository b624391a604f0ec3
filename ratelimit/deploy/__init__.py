"""What goes to AWS: CloudFormation templates and IAM policies, printed with one's own names. What shows the metrics: a
Grafana dashboard, and alert rules for Prometheus."""

from ratelimit.deploy.grafana import dashboard
from ratelimit.deploy.templates import ROLES, TEMPLATES, Role, Template, alert_rules, policies, template

__all__ = ["ROLES", "TEMPLATES", "Role", "Template", "alert_rules", "dashboard", "policies", "template"]
