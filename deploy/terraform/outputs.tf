output "table_name" {
  value = aws_dynamodb_table.this.name
}

output "table_arn" {
  value = aws_dynamodb_table.this.arn
}

output "store" {
  description = "The value of RATELIMIT_STORE; with replicas, AWS_REGION says which one it is."
  value       = "dynamodb://${aws_dynamodb_table.this.name}${local.region == "*" ? "" : "?region=${local.region}"}"
}

output "policy_arns" {
  description = "Of the policies, by role: serve, read, migrate, operate."
  value       = { for role, policy in aws_iam_policy.this : role => policy.arn }
}

output "dashboard" {
  description = "The dashboard's name."
  value       = aws_cloudwatch_dashboard.this.dashboard_name
}
