include("${CMAKE_CURRENT_LIST_DIR}/nibble-targets.cmake")
