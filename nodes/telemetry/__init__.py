"""What nodes measure, second by second: from watch to the pages (`live`), to the database (`history`) and back.

`sample` (pure) knows the shape of a sample; `filing` takes samples from watch's threads to Redis in batches; `live`
reads them once a web process and hands them to every page, none of which can hold up another.
"""
