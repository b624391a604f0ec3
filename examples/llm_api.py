"""A language model behind FastAPI: `uvicorn examples.llm_api:app`. Who logs in gets a JWT, whose plan says how many
tokens a day; an account can be guessed at five times, and each user has two completions at the same time."""

import asyncio
import os
import secrets
import time
from typing import Annotated, Any

import jwt
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from pydantic import BaseModel, Field

from ratelimit import Decision, Policy, RateLimitMiddleware, configure, limited

KEY = os.environ.get("LLM_API_KEY") or secrets.token_urlsafe(32)
PASSWORDS = {"alice": "correct horse", "bob": "battery staple"}  # yours are hashed, in a database
PLANS = {"alice": "free", "bob": "pro"}
TOKENS = {"free": "2000/day", "pro": "100000/day"}


class Login(BaseModel):
    name: str = Field(pattern="^[a-z0-9]{1,50}$")
    password: str


class Prompt(BaseModel):
    text: str
    max_tokens: int = Field(500, ge=1, le=4_000)


async def account(request: Request) -> str:
    asked = await request.json()  # what is not JSON is answered with 400, and what is no login by FastAPI
    return f"account {str(asked.get('name'))[:50]}" if isinstance(asked, dict) else "account of nobody"


policies = [
    Policy("login", "20 per 5 minutes", match="POST /login", user_from="address", count="failure"),
    Policy("login-account", "5 per 15 minutes", match="POST /login", user_from=account, count="failure"),
    Policy("running", "2 concurrent"),
    Policy("tokens", TOKENS["free"], reserve=True),
]
app = FastAPI(title="A language model")
app.add_middleware(RateLimitMiddleware, **configure(policies=policies))


@app.post("/login")
async def login(asked: Login) -> dict[str, str]:
    if not secrets.compare_digest(PASSWORDS.get(asked.name, ""), asked.password) or asked.name not in PASSWORDS:
        raise HTTPException(401, "wrong name or password")
    claims = {"sub": asked.name, "plan": PLANS[asked.name], "exp": int(time.time()) + 3_600}
    return {"token": jwt.encode(claims, KEY, algorithm="HS256")}


def claims(authorization: Annotated[str, Header()] = "") -> dict[str, Any]:
    try:
        return jwt.decode(authorization.removeprefix("Bearer "), KEY, ["HS256"], {"require": ["exp", "sub"]})
    except jwt.InvalidTokenError:
        raise HTTPException(401, "log in first", headers={"WWW-Authenticate": "Bearer"}) from None


def plan(claims: Annotated[dict[str, Any], Depends(claims)]) -> str:
    return TOKENS.get(claims.get("plan", ""), TOKENS["free"])


def at_most(prompt: Prompt) -> int:
    return len(prompt.text.encode()) // 3 + 1 + prompt.max_tokens


running = limited("running", user=Depends(claims))
tokens = limited("tokens", user=Depends(claims), quotas=Depends(plan), cost=Depends(at_most))


async def model(prompt: Prompt) -> tuple[str, int]:
    """Yours is slower; it says how many tokens it has used, which are no more than were reserved."""
    await asyncio.sleep(0)
    return prompt.text.upper(), at_most(prompt) - prompt.max_tokens + len(prompt.text.split())


@app.post("/completions", dependencies=[Depends(running)])
async def complete(
    prompt: Prompt, request: Request, decision: Annotated[Decision, Depends(tokens)]
) -> dict[str, str | int | None]:
    text, used = await model(prompt)
    request.scope["ratelimit"].settle("tokens", min(used, decision.cost))  # the rest goes back behind the answer
    return {"text": text, "tokens": used, "limit": decision.limit}
