"""Records in the format of WebShop's official files, for the tests of environment and loaders."""

import json


def product(asin, **fields):
    """A record with all fields of the official files."""
    return {
        "name": f"Lorvex Mug {asin}", "product_information": {}, "brand": "", "brand_url": "",
        "full_description": "A mug.", "pricing": "$5.50", "list_price": "",
        "availability_quantity": None, "availability_status": "", "images": ["x.jpg"],
        "product_category": "Home › Kitchen › Mugs", "average_rating": "",
        "small_description": ["Holds tea", "Blue"], "small_description_old": "",
        "total_reviews": "", "total_answered_questions": "", "customization_options": "",
        "seller_id": "", "seller_name": "", "fulfilled_by_amazon": "", "fast_track_message": "",
        "aplus_present": "", "asin": asin, "category": "garden", "query": " Tea Mugs ", "page": 1,
        **fields,
    }  # fmt: skip


def human(asin, text="i need a mug.", attributes=("tea",), options=()):
    return {
        "asin": asin, "instruction": text, "attributes": [], "options": [], "assignment_id": "",
        "instruction_attributes": list(attributes), "instruction_options": list(options),
        "worker_id": "",
    }  # fmt: skip


def write(directory, products, attributes=None, instructions=None, suffix=""):
    files = {
        f"items_shuffle{suffix}.json": products,
        f"items_ins_v2{suffix}.json": attributes or {},
        "items_human_ins.json": instructions or {},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    return str(directory)
