"""The base of all sections of a spec, and the kinds of values that several sections share."""

from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

# Key of a validation's context. True: a user submits the spec. False: the spec was read from an existing output.
NEW = "new"


class Section(BaseModel):
    """Base of all sections: unknown fields are refused, and values cannot be changed after creation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false in number fields: YAML reads an unquoted `yes` as true, and pydantic takes it as 1."""
        if isinstance(value, bool) and info.field_name is not None:
            annotation = cls.model_fields[info.field_name].annotation
            types = {*get_args(annotation), annotation}
            if bool not in types and not types.isdisjoint({int, float}):
                raise PydanticCustomError("whole_number" if int in types else "number", "write a number")
        return value


def is_remote(path: str) -> bool:
    """Whether a path lies in object storage."""
    return path.startswith("s3://")


def reachable(path: str) -> str:
    """Return a path that storage can open.

    Raises:
        ValueError: The path is empty, names no bucket, or has an unknown scheme.
    """
    if not path:
        raise ValueError("is empty: write a local path or s3://bucket/prefix")
    if is_remote(path) and not path.removeprefix("s3://").partition("/")[0]:
        raise ValueError("names no bucket: write s3://bucket/prefix")
    if "://" in path and not is_remote(path):
        raise ValueError("only local paths and s3:// are known")
    return path


Location = Annotated[str, AfterValidator(reachable)]
