"""What goes to AWS: CloudFormation templates and IAM policies, printed with one's own names."""

from ratelimit.deploy.templates import ROLES, TEMPLATES, Role, Template, policies, template

__all__ = ["ROLES", "TEMPLATES", "Role", "Template", "policies", "template"]
