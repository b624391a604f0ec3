# The parameters of ratelimit/deploy/table.yaml, with its defaults.

variable "table_name" {
  description = "The table's name, as in RATELIMIT_STORE=dynamodb://NAME."
  type        = string
  default     = "ratelimit"

  validation {
    condition     = can(regex("^[A-Za-z0-9_.-]{3,255}$", var.table_name))
    error_message = "Expected 3 to 255 of letters, digits, '_', '-', '.'."
  }
}

variable "deletion_protection" {
  description = "Whether deleting the table is refused until this is turned off."
  type        = bool
  default     = true
}

variable "kms_key_arn" {
  description = "The ARN of a key in KMS that encrypts the table; empty for the one that AWS owns."
  type        = string
  default     = ""
}

variable "timeline_index" {
  description = "Whether to make GSI2 as well, as `ratelimit table create --gsi2` does."
  type        = bool
  default     = false
}

variable "alarm_topic_arn" {
  description = "The ARN of an SNS topic that alarms are told to; empty to only show them."
  type        = string
  default     = ""
}

variable "slow_check_milliseconds" {
  description = "An alarm says so when one check in a hundred takes DynamoDB longer than this, for five minutes."
  type        = number
  default     = 50

  validation {
    condition     = var.slow_check_milliseconds >= 1
    error_message = "Expected 1 or more."
  }
}

variable "tags" {
  description = "Of all that is made."
  type        = map(string)
  default     = {}
}
