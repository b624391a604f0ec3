"""FastAPI, where a route says itself what limits it: `uvicorn examples.fastapi_app:app`."""

from typing import Annotated

from fastapi import Depends, FastAPI

from ratelimit import Decision, RateLimitMiddleware, configure, limited

app = FastAPI()
app.add_middleware(
    RateLimitMiddleware,
    **configure(
        user_from=["header:x-api-key", "address"],
        policies={"hint": {"quotas": "5/day"}, "export": {"quotas": "100/day", "count": "success"}},
    ),
)


@app.post("/hints")
async def hint(decision: Annotated[Decision, Depends(limited("hint"))]) -> dict[str, object]:
    return {"hint": "Try a dictionary.", "left_today": decision.remaining}


@app.post("/exports", dependencies=[Depends(limited("export", cost=10))])
async def export() -> dict[str, str]:
    return {"export": "started"}
