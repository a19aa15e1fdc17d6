"""The field's precision methods side by side, one a file, each a `wattbit.recipe.Method`; `registry` names them."""
