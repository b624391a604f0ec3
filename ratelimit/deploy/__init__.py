"""What goes to AWS: CloudFormation templates and IAM policies, printed with one's own names."""

from ratelimit.deploy.policies import ROLES, Role, policies
from ratelimit.deploy.templates import TEMPLATES, Template, template

__all__ = ["ROLES", "TEMPLATES", "Role", "Template", "policies", "template"]
