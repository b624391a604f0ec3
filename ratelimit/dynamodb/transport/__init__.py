"""How requests go to DynamoDB: aiobotocore, and the fast transport for what is written all the time."""
