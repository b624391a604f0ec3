# The one table (as `ratelimit table create` makes it), and who may do what on it: what ratelimit/deploy/table.yaml and
# global-table.yaml have for CloudFormation, which a test compares with this. docs/deployment.md tells the rest.

locals {
  indexes = var.timeline_index ? ["GSI1", "GSI2"] : ["GSI1"]

  # Replicas that agree at once have neither an expiry, nor need they a stream.
  is_strong = var.consistency == "STRONG"
  has_lag   = length(var.replica_regions) > 0 && !local.is_strong
}

resource "aws_dynamodb_table" "this" {
  name                        = var.table_name
  billing_mode                = "PAY_PER_REQUEST"
  hash_key                    = "PK"
  range_key                   = "SK"
  deletion_protection_enabled = var.deletion_protection
  stream_enabled              = local.has_lag
  stream_view_type            = local.has_lag ? "NEW_AND_OLD_IMAGES" : null
  tags                        = var.tags

  dynamic "attribute" {
    for_each = concat(["PK", "SK"], flatten([for index in local.indexes : ["${index}PK", "${index}SK"]]))
    content {
      name = attribute.value
      type = "S"
    }
  }

  dynamic "global_secondary_index" {
    for_each = local.indexes
    content {
      name            = global_secondary_index.value
      hash_key        = "${global_secondary_index.value}PK"
      range_key       = "${global_secondary_index.value}SK"
      projection_type = "ALL"
    }
  }

  dynamic "replica" {
    for_each = toset(var.replica_regions)
    content {
      region_name                 = replica.value
      consistency_mode            = var.consistency
      deletion_protection_enabled = var.deletion_protection
      point_in_time_recovery      = true
      propagate_tags              = true
    }
  }

  dynamic "global_table_witness" {
    for_each = var.witness_region == "" ? [] : [var.witness_region]
    content {
      region_name = global_table_witness.value
    }
  }

  dynamic "ttl" {
    for_each = local.is_strong ? [] : ["ttl"]
    content {
      attribute_name = ttl.value
      enabled        = true
    }
  }

  point_in_time_recovery {
    enabled = true
  }

  dynamic "server_side_encryption" {
    for_each = var.kms_key_arn == "" ? [] : [var.kms_key_arn]
    content {
      enabled     = true
      kms_key_arn = server_side_encryption.value
    }
  }

  # What people have used is theirs: neither a destroyed module nor a replaced resource takes it along.
  lifecycle {
    prevent_destroy = true

    precondition {
      condition     = var.kms_key_arn == "" || length(var.replica_regions) == 0
      error_message = "A key of one region encrypts no replica in another: leave kms_key_arn empty."
    }

    precondition {
      condition     = !local.is_strong || length(var.replica_regions) == (var.witness_region == "" ? 2 : 1)
      error_message = "STRONG is for three regions, or for two and a witness."
    }
  }
}

locals {
  # arn:PARTITION:dynamodb:REGION:ACCOUNT:table/NAME
  arn = split(":", aws_dynamodb_table.this.arn)

  # Who works in one of many regions asks the others too.
  region = length(var.replica_regions) == 0 ? local.arn[3] : "*"

  roles = {
    serve   = "the middleware, the sidecar, and the commands that change data"
    read    = "reports and exports"
    migrate = "filling it from elsewhere"
    operate = "the table's own life"
  }
}

# The files that `ratelimit deploy render iam` prints: the one place where the statements are. Attach them to one's own roles.
resource "aws_iam_policy" "this" {
  for_each = local.roles

  name_prefix = "ratelimit-${each.key}-"
  description = "ratelimit on ${var.table_name}: ${each.value}"
  tags        = var.tags

  policy = templatefile("${path.module}/../../ratelimit/deploy/iam/${each.key}.json", {
    Partition = local.arn[1]
    Region    = local.region
    AccountId = local.arn[4]
    TableName = var.table_name
  })
}
