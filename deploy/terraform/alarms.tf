locals {
  table         = { TableName = var.table_name }
  checks        = { TableName = var.table_name, Operation = "UpdateItem" }
  log           = { TableName = var.table_name, Operation = "BatchWriteItem" }
  alarm_actions = var.alarm_topic_arn == "" ? [] : [var.alarm_topic_arn]

  alarms = {
    WriteThrottles = {
      description = "${var.table_name} refuses writes: checks fall to their policy's on_unavailable. A hot key, or a limit of the account."
      metric      = "WriteThrottleEvents"
      dimensions  = local.table
      datapoints  = 3
      threshold   = 1
    }
    ReadThrottles = {
      description = "${var.table_name} refuses reads: of users, plans and reports."
      metric      = "ReadThrottleEvents"
      dimensions  = local.table
      datapoints  = 3
      threshold   = 1
    }
    CheckErrors = {
      description = "DynamoDB answers checks on ${var.table_name} with errors of its own (HTTP 500)."
      metric      = "SystemErrors"
      dimensions  = local.checks
      datapoints  = 2
      threshold   = 5
    }
    LogErrors = {
      description = "DynamoDB answers the usage log on ${var.table_name} with errors of its own; events wait meanwhile."
      metric      = "SystemErrors"
      dimensions  = local.log
      datapoints  = 2
      threshold   = 5
    }
    # DynamoDB counts these for the account and region, not by table. Refused checks are not among them.
    RefusedRequests = {
      description = "DynamoDB refuses requests of this account as wrong (HTTP 400) - permissions, a missing table, bad requests."
      metric      = "UserErrors"
      dimensions  = {}
      datapoints  = 3
      threshold   = 10
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "this" {
  for_each = local.alarms

  alarm_name          = "${var.table_name}-${each.key}"
  alarm_description   = each.value.description
  namespace           = "AWS/DynamoDB"
  metric_name         = each.value.metric
  dimensions          = each.value.dimensions
  statistic           = "Sum"
  period              = 60
  evaluation_periods  = 5
  datapoints_to_alarm = each.value.datapoints
  threshold           = each.value.threshold
  comparison_operator = "GreaterThanOrEqualToThreshold"
  treat_missing_data  = "notBreaching"
  alarm_actions       = local.alarm_actions
  ok_actions          = local.alarm_actions
  tags                = var.tags
}

resource "aws_cloudwatch_metric_alarm" "slow_checks" {
  alarm_name          = "${var.table_name}-SlowChecks"
  alarm_description   = "One check in a hundred on ${var.table_name} takes DynamoDB longer than ${var.slow_check_milliseconds} ms."
  namespace           = "AWS/DynamoDB"
  metric_name         = "SuccessfulRequestLatency"
  dimensions          = local.checks
  extended_statistic  = "p99"
  period              = 60
  evaluation_periods  = 5
  threshold           = var.slow_check_milliseconds
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
  # A night with ten requests has no hundredth.
  evaluate_low_sample_count_percentiles = "ignore"

  alarm_actions = local.alarm_actions
  ok_actions    = local.alarm_actions
  tags          = var.tags
}

resource "aws_cloudwatch_dashboard" "this" {
  dashboard_name = "${replace(var.table_name, ".", "_")}-${local.arn[3]}"
  dashboard_body = templatefile("${path.module}/dashboard.json.tftpl", {
    Region    = local.arn[3]
    TableName = var.table_name
    Alarms    = merge({ for name, alarm in aws_cloudwatch_metric_alarm.this : name => alarm.arn }, { SlowChecks = aws_cloudwatch_metric_alarm.slow_checks.arn })
  })
}
