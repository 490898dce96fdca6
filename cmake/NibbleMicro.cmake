# Each benchmarks/micro/*.cpp becomes a program of its name: one layer of the engine timed by itself. They are for
# working on that layer, not for reporting, and are neither tests nor built unless asked for.
option(NIBBLE_MICRO "build the micro benchmarks" OFF)
if(NIBBLE_MICRO)
  file(GLOB micro_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/benchmarks/micro/*.cpp)
  foreach(source ${micro_sources})
    get_filename_component(name ${source} NAME_WE)
    if(name MATCHES "^cuda_" AND NOT NIBBLE_WITH_CUDA)
      continue()
    endif()
    add_executable(${name} ${source})
    target_link_libraries(${name} PRIVATE nibble_flags nibble_ops nibble_kernels)
    if(name MATCHES "^cuda_")
      # Beside the library, which takes what it uses of the program from it.
      set_target_properties(${name} PROPERTIES ENABLE_EXPORTS ON RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
      add_dependencies(${name} nibble_cuda)
    endif()
  endforeach()
endif()
