# The parameters of ratelimit/deploy/table.yaml, with its defaults, and those of global-table.yaml about its replicas.

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

variable "replica_regions" {
  description = "Regions with a replica, beside the one of the provider; none for a table in one region."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for region in var.replica_regions : can(regex("^[a-z0-9]+(-[a-z0-9]+)+$", region))])
    error_message = "Expected regions, as in [\"us-east-1\", \"ap-south-1\"]."
  }
}

variable "consistency" {
  description = "EVENTUAL for mode home; STRONG, with three replicas or two and a witness, for mode strong. It never changes."
  type        = string
  default     = "EVENTUAL"

  validation {
    condition     = contains(["EVENTUAL", "STRONG"], var.consistency)
    error_message = "Expected EVENTUAL or STRONG."
  }
}

variable "witness_region" {
  description = "With STRONG and two replicas, the region of the witness; empty for none."
  type        = string
  default     = ""
}

variable "tags" {
  description = "Of all that is made."
  type        = map(string)
  default     = {}
}
