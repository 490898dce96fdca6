# What the benchmark's manifest says of the build. The commit is that of the last configure.
set(NIBBLE_COMMIT "")
find_package(Git QUIET)
if(GIT_FOUND)
  execute_process(COMMAND ${GIT_EXECUTABLE} -C ${CMAKE_SOURCE_DIR} describe --always --dirty --abbrev=12
    OUTPUT_VARIABLE NIBBLE_COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
string(TOUPPER "${CMAKE_BUILD_TYPE}" build_type)
string(STRIP "${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${build_type}}" build_flags)
set(cuda_architectures "")
set(cuda_toolkit "")
if(NIBBLE_WITH_CUDA)
  # A list's semicolons would end the definition.
  string(REPLACE ";" " " cuda_architectures "${NIBBLE_CUDA_ARCHITECTURES}")
  set(cuda_toolkit "${CUDAToolkit_VERSION}")
endif()
set(build_info
  "NIBBLE_CUDA_BUILD_ARCHITECTURES=\"${cuda_architectures}\""
  "NIBBLE_CUDA_BUILD_TOOLKIT=\"${cuda_toolkit}\""
  "NIBBLE_COMMIT=\"${NIBBLE_COMMIT}\""
  "NIBBLE_COMPILER=\"${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}\""
  "NIBBLE_FLAGS=\"${build_flags}\""
  "NIBBLE_BUILD_TYPE=\"${CMAKE_BUILD_TYPE}\"")
set_source_files_properties(${CMAKE_SOURCE_DIR}/src/cli/bench_manifest.cpp PROPERTIES
  COMPILE_DEFINITIONS "${build_info}")
